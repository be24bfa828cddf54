"""Which layers every selector picks on a pair: layercard's scores and strategies, chance, and peers where installed.

The probe's examples are the first of seed 0's training rows. Sets by score have a third of the layers, the default share,
except where a selector has a size of its own (`auto`, `cumulative`, aletheia-lora's half, KappaTune's fifth of modules).
"""

from __future__ import annotations

import copy
import importlib.util
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft.helpers import KappaTuneSelector
from torch import Tensor
from validity.arms import Arm, FixedLayers, all_layers, modules_arm
from validity.pairs import Subject

import layercard
from layercard import plugins
from layercard.anatomy.layers import LayerStack, find_layers
from layercard.anatomy.targets import find_targets
from layercard.data import collate, pad_id
from layercard.errors import ProbeError
from layercard.pipeline.probe import score
from layercard.placement.choose import choose_placement
from layercard.scores.base import LayerScores
from layercard.settings import PlacementSettings

PROBED, PROBED_AT_ONCE = 32, 8
RANDOM_SETS = 4
UNIFORM_HALF = {"strategy": "uniform", "fraction": 0.5}
PREFER = ("quality", "balanced", "speed")
DEFAULT = "resnorm"
ALETHEIA_EXAMPLES = 5
"""Its own default."""
KAPPA_SHARE = 0.2
"""PEFT's default."""


def choices(subject: Subject, rows: slice) -> dict[str, Any]:
    """Return as JSON `scores` (importance by layer, of each scorer), `selectors` (each one's layers or modules), seconds.

    `rows` are the training rows of an epoch. A score that is undefined on these data stands in `undefined`.
    """
    examples = subject.training_rows(rows)[:PROBED]
    stack = find_layers(subject.base)
    scores, undefined, seconds = _probed(subject, examples)
    selectors = {name: {"layers": layers} for name, layers in _shipped(scores, len(stack)).items()}
    peers, peer_scores, peer_seconds = _peers(subject, examples, stack)
    return {
        "scores": {name: found.importance.tolist() for name, found in scores.items()} | peer_scores,
        "undefined": undefined,
        "selectors": selectors | peers,
        "seconds": {"probe": seconds} | peer_seconds,
        "depth": len(stack),
        "modules_each": len(find_targets(subject.base, stack)) // len(stack),
    }


def arms_of(found: Mapping[str, Any], stack: LayerStack) -> dict[str, Arm]:
    """Return the arm of every selector of `choices`."""
    arms: dict[str, Arm] = {}
    for name, chosen in found["selectors"].items():
        if "layers" in chosen:
            arms[name] = FixedLayers(tuple(chosen["layers"]), found["depth"])
        else:
            arms[name] = modules_arm(chosen["modules"], stack.layer_of, found["modules_each"])
    return arms


def _probed(subject: Subject, examples: Sequence[Any]) -> tuple[dict[str, LayerScores], dict[str, str], float]:
    pad = pad_id(subject.tokenizer)
    batches = [collate(examples[i : i + PROBED_AT_ONCE], pad) for i in range(0, len(examples), PROBED_AT_ONCE)]
    names = sorted(plugins.scorers(plugins.manager()))
    began = time.process_time()
    statistics = layercard.probe(subject.base, batches, scores=names, seed=0, show_progress=False)
    seconds = round(time.process_time() - began, 2)
    scores, undefined = {}, {}
    for name in names:
        try:
            scores[name] = score(statistics, name)
        except ProbeError as error:
            undefined[name] = str(error)
    return scores, undefined, seconds


def _shipped(scores: Mapping[str, LayerScores], depth: int) -> dict[str, list[int]]:
    """Return what layercard's strategies pick, most interesting first: results come in this order."""
    strategies = plugins.strategies(plugins.manager())

    def pick(**settings: Any) -> list[int]:
        return list(choose_placement(PlacementSettings(**settings), depth, strategies=strategies, scores=scores).layers)

    found = {"all-layer": list(all_layers(depth).layers), "auto balanced": pick(prefer="balanced")}
    found[f"high {DEFAULT}"] = pick(strategy="high", score=DEFAULT)
    found["auto speed"] = pick(prefer="speed")
    found["last"] = pick(strategy="last")
    found["uniform"] = pick(strategy="uniform")
    found["low resnorm"] = pick(strategy="low", score=DEFAULT)
    found["middle"] = pick(strategy="middle")
    found["auto quality"] = pick(prefer="quality")
    found["random 0"] = pick(strategy="random", random_seed=0)
    found["mid resnorm"] = pick(strategy="mid", score=DEFAULT)
    found["first"] = pick(strategy="first")
    others = [name for name in scores if name != DEFAULT]
    found |= {f"high {name}": pick(strategy="high", score=name) for name in others}
    found |= {f"random {i}": pick(strategy="random", random_seed=i) for i in range(1, RANDOM_SETS)}
    found["cumulative resnorm"] = pick(strategy="cumulative", score=DEFAULT)
    return found


def _peers(
    subject: Subject, examples: Sequence[Any], stack: LayerStack
) -> tuple[dict[str, dict[str, Any]], dict[str, list[float]], dict[str, float]]:
    depth, third = len(stack), round(len(stack) / 3)
    selectors, scores, seconds = {}, {}, {}
    if importlib.util.find_spec("aletheia_lora") is not None:
        began = time.process_time()
        norms = _aletheia(subject, examples, depth)
        seconds["aletheia"] = round(time.process_time() - began, 2)
        from aletheia_lora import select_layers

        selectors["aletheia third"] = {"layers": select_layers(norms, top_pct=100 * (third + 0.5) / depth)}
        selectors["aletheia half"] = {"layers": select_layers(norms)}
        scores["aletheia"] = [norms[layer] for layer in range(depth)]
    began = time.process_time()
    selector = KappaTuneSelector(subject.base, show_progress=False)
    inside = [name for name in selector.get_best_targets() if stack.layer_of(name) is not None]
    seconds["kappa"] = round(time.process_time() - began, 2)
    each = len(inside) // depth
    selectors["kappa third"] = {"modules": inside[: third * each]}
    selectors["kappa fifth"] = {"modules": inside[: int(len(inside) * KAPPA_SHARE)]}
    return selectors, scores, seconds


def _aletheia(subject: Subject, examples: Sequence[Any], depth: int) -> dict[int, float]:
    """Return aletheia-lora's norms, by its defaults, on the same examples; it learns prompts too."""
    from aletheia_lora import gradient_probe

    rows: list[dict[str, Tensor]] = [
        {
            "input_ids": torch.tensor(row["input_ids"]),
            "attention_mask": torch.ones(len(row["input_ids"]), dtype=torch.long),
        }
        for row in examples
    ]
    model = copy.deepcopy(subject.base)
    found: dict[int, float] = gradient_probe(model, rows, depth, probe_batches=ALETHEIA_EXAMPLES)
    return found
