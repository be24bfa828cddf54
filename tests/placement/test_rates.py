"""The hint at a learning rate is what the validity benchmark's kept results say."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

from layercard.placement.placement import LayerPlacement
from layercard.placement.rates import BEST_FACTORS, learning_rate_hint

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "validity"
GROUPS = {"narrow": "third", "wide": "half"}


def best_rates(folder: Path) -> dict[str, float]:
    """Return each group's rate with the lowest loss of those that were tried; the lower of two."""
    losses: dict[str, dict[float, float]] = defaultdict(dict)
    for path in folder.glob("rate-*.json"):
        document = json.loads(path.read_text())
        loss = document["result"]["points"][-1]["loss"]
        losses[path.name.split("-")[1]][document["inputs"]["rate"]] = float("inf") if loss is None else loss
    return {group: min(tried, key=lambda rate: (tried[rate], rate)) for group, tried in losses.items()}


def test_the_factors_are_those_of_the_kept_results() -> None:
    found: dict[str, list[float]] = defaultdict(list)
    for folder in sorted(RESULTS.iterdir()):
        best = best_rates(folder)
        for group, name in GROUPS.items():
            found[name].append(best[group] / best["all"])
    assert {name: tuple(sorted(factors)) for name, factors in found.items()} == BEST_FACTORS


def placement(*layers: int) -> LayerPlacement:
    return LayerPlacement(layers, 12, "last", None, "a test")


def test_the_hint_names_what_was_best_for_about_as_many_layers() -> None:
    third, half = learning_rate_hint(placement(0, 4, 8)), learning_rate_hint(placement(*range(6)))
    assert third == "With 3 of 12 layers adapted, try 2x the learning rate: over six pairs 1x to 8x was best."
    assert half == "With 6 of 12 layers adapted, try 1.5x the learning rate: over six pairs 1x to 4x was best."
    assert learning_rate_hint(placement(*range(12))) is None
