"""The learning rate of each group of counts of adapted layers, chosen on rows that no comparison uses.

The grid is powers of two times 1e-3. Three rates are tried around `START`, and further ones as long as the best is at an
edge of those tried. What is trained to choose: all-layer LoRA for the group of all layers; for the others a random set of
layers of the group's middle size, which favours no selector. Every arm of a group then trains at the group's rate.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from validity.arms import FixedLayers, all_layers

START = 1
"""Index into the grid: 2e-3."""
LOWEST, HIGHEST = -3, 5
GROUPS = {"all": 1.0, "wide": 0.5, "narrow": 1 / 3}
"""Each group's share of layers, of the set that its rate is chosen with."""
WIDE = 0.42
"""The least share of layers of the group `wide`."""
SEED = 1234


def rate_of(index: int) -> float:
    """Return a rate of the grid."""
    return float(f"{1e-3 * 2.0**index:.6g}")


def group_of(share: float) -> str:
    """Return the group of a share of layers."""
    if share > 1 - 1e-9:
        return "all"
    return "wide" if share >= WIDE else "narrow"


def trial_set(group: str, depth: int) -> FixedLayers:
    """Return the set of layers that the group's rate is chosen with."""
    if group == "all":
        return all_layers(depth)
    count = round(GROUPS[group] * depth)
    return FixedLayers(tuple(sorted(random.Random(SEED).sample(range(depth), count))), depth)


def best_rate(loss_of: Callable[[float], float | None]) -> tuple[float, dict[float, float | None]]:
    """Return the rate with the lowest loss, and the losses of those that were tried; a loss of None has diverged."""
    tried: dict[int, float | None] = {}

    def loss(index: int) -> float:
        if index not in tried:
            tried[index] = loss_of(rate_of(index))
        found = tried[index]
        return math.inf if found is None else found

    for index in (START, START + 1, START - 1):
        loss(index)
    while True:
        best = min(tried, key=lambda i: (loss(i), i))
        if best == max(tried) < HIGHEST:
            loss(best + 1)
        elif best == min(tried) > LOWEST:
            loss(best - 1)
        else:
            return rate_of(best), {rate_of(i): tried[i] for i in sorted(tried)}
