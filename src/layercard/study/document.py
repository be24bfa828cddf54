"""Puts what a study found into a Layer Card's document."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from layercard.study.arms import ALL_LAYERS, UNTUNED, Arm
from layercard.study.examples import layout_of
from layercard.study.generation import DIRECTIONS as TEXT_DIRECTIONS
from layercard.study.probes import importance, stability
from layercard.study.provenance import provenance
from layercard.study.reproduction import reproduction
from layercard.study.settings import StudyData, StudySettings

MAIN_METRIC = "heldout_loss"
DIRECTIONS = {MAIN_METRIC: "lower", "accuracy": "higher", **TEXT_DIRECTIONS}
SHARED_BY_COSTS = ("pairs", "interval_coverage")
"""What is the same of every set of layers: how often it was timed, and how surely the intervals hold the ratios."""
HEAD_ALONE = "no layer adapted; the classifier's head trained under the same budget"
SCHEDULE = "AdamW, linear warm-up over a tenth of the steps, then linear to 0"


@dataclass(frozen=True)
class Findings:
    """Every finished part of a study."""

    arms: Sequence[Arm]
    probes: Sequence[dict[str, Any]]
    """By seed; the first, of every score, is the card's."""
    by_rank: Sequence[dict[str, Any]]
    untuned: Sequence[dict[str, Any]]
    """Without adapted layers: of a language model once, of a classifier with its head trained from every seed."""
    costs: Mapping[str, Any]
    runs: Mapping[str, Sequence[dict[str, Any]]]
    """Of every arm by name, in the seeds' order."""
    digests: tuple[str | None, str | None]
    heldout: int

    @property
    def head_trained(self) -> bool:
        """Whether what layers are judged against was trained, and so depends on the seed."""
        return "train_loss" in self.untuned[0]


def card_document(
    facts: Mapping[str, Any],
    data: StudyData,
    settings: StudySettings,
    found: Findings,
    tokenizer: Any,
    command: Sequence[str] | None,
) -> dict[str, Any]:
    """Return the document; `facts` is what it says of the model, `command` the words that built it."""
    main, origin = found.probes[0], provenance(command)
    again = _reproduction(found, settings, origin["date"])
    return {
        "schema_version": 1,
        "license": "CC-BY-4.0",
        "status": "community" if again is None or settings.quick else "reproduced",
        "quick": settings.quick,
        "reproduction": None if settings.quick else again,
        "model": dict(facts),
        "dataset": _dataset(data, settings, found, tokenizer),
        "lora": {"rank": settings.rank, "alpha": settings.alpha, "targets": main["targets"]},
        "probe": {name: main[name] for name in ("examples", "tokens", "seed", "rank", "notes", "undefined")}
        | {"batch_size": settings.probe_batch_size, "max_length": settings.max_length},
        "training": _training(facts, settings) | _timing(found),
        "scorers": {name: {"plugin": values["plugin"]} for name, values in main["scores"].items()},
        "layers": _layers(main),
        "main_metric": MAIN_METRIC,
        "outcomes": _outcomes(found),
        "stability": stability(found.probes, found.by_rank, settings.rank),
        "provenance": origin,
    }


def _dataset(data: StudyData, settings: StudySettings, found: Findings, tokenizer: Any) -> dict[str, Any]:
    columns, template = layout_of(data, tokenizer)
    (train, heldout), split = found.digests, data.heldout_split
    return {
        "id": data.id,
        "revision": data.revision,
        "digest": train,
        "split": None if train else data.split,
        "columns": columns,
        "template": template,
        "examples": settings.steps * settings.batch_size,
        "tokens": found.runs[ALL_LAYERS][0]["tokens"],
        "heldout": {"digest": heldout, "examples": found.heldout, "split": None if heldout else split},
    }


def _training(facts: Mapping[str, Any], settings: StudySettings) -> dict[str, Any]:
    names = ("steps", "batch_size", "learning_rate", "max_length", "seeds", "gradient_checkpointing")
    values = settings.values()
    return {name: values[name] for name in names} | {"schedule": SCHEDULE, "dtype": facts["dtype"]}


def _timing(found: Findings) -> dict[str, Any]:
    """How the costs of all sets of layers were taken."""
    whole = found.costs["arms"][ALL_LAYERS]
    shared = {name: whole[name] for name in SHARED_BY_COSTS if name in whole}
    return {"memory_method": found.costs["memory_method"], "clock": found.costs["clock"]} | shared


def _layers(probed: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for layer in range(len(importance(probed))):
        scores = {
            name: {"importance": values["importance"][layer], "raw": values["raw"][layer]}
            for name, values in probed["scores"].items()
        }
        rank = None if probed["effective_rank"] is None else probed["effective_rank"][layer]
        energy = None if probed["energy"] is None else probed["energy"][layer]
        rows.append({"layer": layer, "scores": scores, "energy": energy, "effective_rank": rank})
    return rows


def _outcomes(found: Findings) -> list[dict[str, Any]]:
    untuned: dict[str, Any] = {
        "name": UNTUNED,
        "kind": "reference",
        "strategy": HEAD_ALONE if found.head_trained else None,
        "count": 0,
        "layers": [],
        "metrics": _metrics(found.untuned, seeded=found.head_trained),
        "cost": None,
        "gain": None,
    }
    return [untuned, *(_outcome(arm, found) for arm in found.arms)]


def _outcome(arm: Arm, found: Findings) -> dict[str, Any]:
    layers = list(arm.layers)
    raw = importance(found.probes[0])[layers]
    energy = _pooled_energy(found.probes[0], layers)
    metrics, before = _metrics(found.runs[arm.name]), _metrics(found.untuned)
    return {
        "name": arm.name,
        "kind": arm.kind,
        "strategy": arm.strategy,
        "layers": layers,
        "count": len(layers),
        "resnorm_range": [float(raw.min()), float(raw.max())],
        "energy_profile": energy,
        "metrics": metrics,
        "cost": {n: v for n, v in found.costs["arms"][arm.name].items() if n not in SHARED_BY_COSTS},
        "gain": {
            "metric": MAIN_METRIC,
            "value": before[MAIN_METRIC]["value"] - metrics[MAIN_METRIC]["value"],
            "direction": "higher",
        },
        "trainable_parameters": found.runs[arm.name][0]["trainable_parameters"],
    }


def _metrics(runs: Sequence[dict[str, Any]], *, seeded: bool = True) -> dict[str, Any]:
    """Every metric's mean over runs; where they come from seeds, with each one's value and how far these lie apart."""
    return {name: _metric(name, [run["metrics"][name] for run in runs], seeded) for name in runs[0]["metrics"]}


def _metric(name: str, values: Sequence[float], seeded: bool) -> dict[str, Any]:
    held: dict[str, Any] = {"value": statistics.fmean(values), "direction": DIRECTIONS[name]}
    if not seeded:
        return held
    spread = max(values) - min(values) if len(values) > 1 else None
    return held | {"seeds": list(values), "spread": spread}


def _pooled_energy(probed: dict[str, Any], layers: Sequence[int]) -> dict[str, float] | None:
    """The layers' energy per dimension, each the mean over its target modules."""
    if probed["energy"] is None:
        return None
    pooled = [float(np.mean(list(probed["energy"][layer].values()))) for layer in layers]
    return {"mean": statistics.fmean(pooled), "min": min(pooled), "max": max(pooled)}


def _reproduction(found: Findings, settings: StudySettings, date: str) -> dict[str, Any] | None:
    before = [run["metrics"][MAIN_METRIC] for run in found.untuned]
    if not found.head_trained:
        before *= len(settings.seeds)
    gains = {
        name: [base - run["metrics"][MAIN_METRIC] for base, run in zip(before, runs, strict=True)]
        for name, runs in found.runs.items()
    }
    rankings = {p["seed"]: importance(p) for p in found.probes if p["seed"] in settings.seeds}
    return reproduction(rankings, gains, ALL_LAYERS, date)
