"""Whether gains of sets of layers, seen before training, have the order of what the placements of `benchmarks/guard` reached.

SmolLM2-135M, three data sets, two learning rates, 200 steps; five placements beside all-layer LoRA. What is reached is the share
of all-layer LoRA's gain in mean held-out loss. Spearman's ρ over five placements is coarse: one exchange of neighbours is 0.9.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS
from scipy.stats import spearmanr
from transformers import AutoModelForCausalLM, AutoTokenizer

import layercard
from layercard.data import probe_data
from layercard.pipeline.probe import score
from layercard.scores.resnorm import pooled_energy
from layercard.scores.set_gain import SetGain

DEPTH, LONGEST = 30, 128
Worth = Callable[[Sequence[int]], float]


def achieved_order(model: Path, data: Path, *, examples: int) -> dict[str, Any]:
    """Return, for each way to value a set, Spearman's ρ with what placements reached in each run, and the mean over runs."""
    runs = reached()
    found: dict[str, dict[str, float]] = {}
    for name in sorted({data for data, _ in runs}):
        ways = worths(model, data / name / "train.jsonl", examples)
        for (of, rate), shares in runs.items():
            if of != name:
                continue
            for way, worth in ways.items():
                values = [worth(layers) for layers in shares]
                rho = float(spearmanr(values, list(shares.values())).statistic)
                found.setdefault(way, {})[f"{name} {rate:g}"] = round(rho, 2)
    return {way: rows | {"mean": round(float(np.mean(list(rows.values()))), 2)} for way, rows in found.items()}


def reached() -> dict[tuple[str, float], dict[tuple[int, ...], float]]:
    """Return by data set and rate the share of all-layer LoRA's gain that each smaller set of layers reached."""
    document = json.loads((RESULTS / "guard-ground-truth.json").read_text())
    whole = {(r["data"], r["rate"]): r for r in document["results"] if len(r["layers"]) == DEPTH}
    shares: dict[tuple[str, float], dict[tuple[int, ...], float]] = {}
    for run in document["results"]:
        every = whole[run["data"], run["rate"]]
        before, best = np.mean(every["heldout_losses"]["0"]), np.mean(every["heldout_losses"][str(run["steps"])])
        after = np.mean(run["heldout_losses"][str(run["steps"])])
        if len(run["layers"]) < DEPTH:
            share = float((before - after) / (before - best))
            shares.setdefault((run["data"], run["rate"]), {})[tuple(run["layers"])] = share
    return shares


def worths(model: Path, data: Path, examples: int) -> dict[str, Worth]:
    """Return the ways to value a set of layers, from one probe in float32."""
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    read = probe_data(
        str(data),
        AutoTokenizer.from_pretrained(model),
        task="causal",
        examples=examples,
        batch_size=8,
        max_length=LONGEST,
        seed=0,
    )
    statistics = layercard.probe(base, read.batches, scores=("resnorm", "gradient_norm", "set_gain"), rank=16)
    grams, layers = statistics.gradient_gram, range(DEPTH)
    assert grams is not None
    ways: dict[str, Worth] = {"number of layers": len, "number of layers, then depth": lambda s: len(s) - sum(s) / 1e4}
    for name in ("resnorm", "gradient_norm"):
        importance = score(statistics, name).importance
        ways[f"sum of {name}"] = lambda s, importance=importance: float(importance[list(s)].sum())
    shipped = SetGain.of_grams(grams, layers)
    alone = np.array([shipped.of([layer]) for layer in layers])
    ways["sum of single gains"] = lambda s: float(alone[list(s)].sum())
    traces = np.einsum("lii->l", grams)[:, None, None]
    scaled = {
        "": shipped.kernels,
        " without scaling": grams,
        " by half of that scaling": grams / np.sqrt(traces),
        " by activation energy": grams / pooled_energy(statistics)[:, None, None],
    }
    for how, kernels in scaled.items():
        mean = float(np.einsum("lii->", kernels)) / len(kernels[0])
        for factor in (0.1, 1.0, 10.0):
            ways[f"set gain{how}, damping × {factor:g}"] = SetGain(kernels, factor * mean).of
    return ways
