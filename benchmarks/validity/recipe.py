"""How every run trains: `Recipe`; and for how many steps each arm trains, so that equal time can be read from its curve.

The rate is constant after a short warm-up, so that one run is worth reading at every length: under a rate that decays
to the run's end, losses before the end would be those of no run that anybody would have planned. What decay would have
brought is had by judging the polynomial-decay average of the adapters (Shamir & Zhang 2013, arXiv 1212.1824, section
4.2), which Hägele et al. 2024 (arXiv 2405.18392) find close to a decayed run of the same length.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

MARGIN = 1.05
"""How far runs go beyond the predicted time of all-layer LoRA, since predictions are off by a few percent."""


@dataclass(frozen=True)
class Recipe:
    """LoRA of rank 8 and alpha 16 on every linear module of a layer; AdamW without decay of weights, gradients clipped."""

    steps: int = 60
    """Of all-layer LoRA, and where losses are compared at equal steps."""
    epoch_steps: int = 60
    """One epoch for all-layer LoRA: so small a set overfits when it is repeated. Cheaper arms go on into the second."""
    every: int = 15
    """Steps between two evaluations."""
    rate_steps: int = 30
    """Steps of the runs that choose a learning rate."""
    warm_up: int = 4
    clip: float = 1.0
    averaging: float = 2.0
    """γ of the polynomial-decay average: step t of n weighs as (t / n)^γ. With 8, curves of so small batches went up and down."""
    most: float = 2.5
    """No arm trains for more than this many times `steps`."""
    cache_bytes: int = 2**30
    """The limit of the prefix cache's memory."""

    def inputs(self) -> dict[str, Any]:
        """Return what results depend on."""
        return asdict(self)

    def rows(self, block: int, batch: int) -> slice:
        """Return which training rows block `block` holds, at `batch` examples a step: those of one epoch."""
        size = self.epoch_steps * batch
        return slice(block * size, (block + 1) * size)

    def length(self, all_layer: float, cost: Callable[[int], float]) -> int:
        """Return for how many steps an arm trains; `steps_for` has the arguments."""
        return steps_for(self, all_layer, cost)

    def rate_at(self, step: int, rate: float) -> float:
        """Return the learning rate of a step, counted from 0."""
        return rate * min(1.0, (step + 1) / self.warm_up)


@dataclass(frozen=True)
class NewExamples(Recipe):
    """The same where data outlast the time: every arm trains for one long epoch and sees no example twice.

    What an arm saves then goes into examples that all-layer LoRA has no time for, not into a second look at the same. Rates
    are those that `Recipe` chose, on rows that stay apart here too.
    """

    epoch_steps: int = 120
    """How long every arm trains: as long as one at half of all-layer LoRA's cost takes for its time of `steps`."""
    apart: int = Recipe.epoch_steps
    """How many steps' rows belong to the choice of rates."""
    cache_bytes: int = 0
    """A cache of the prefix would never be read."""

    def rows(self, block: int, batch: int) -> slice:
        """Return which training rows block `block` holds, counted from 1."""
        start = (self.apart + (block - 1) * self.epoch_steps) * batch
        return slice(start, start + self.epoch_steps * batch)

    def length(self, all_layer: float, cost: Callable[[int], float]) -> int:
        """Return the steps of the epoch."""
        return self.epoch_steps


def steps_for(recipe: Recipe, all_layer: float, cost: Callable[[int], float]) -> int:
    """Return how many steps an arm trains: until it has cost what all-layer LoRA does and some more, on a step that is judged.

    `all_layer` is the cost of a step of all-layer LoRA, `cost(step)` that of the arm's; both predicted, in any unit, so
    that the number is the same on every machine.
    """
    budget, spent, steps = MARGIN * recipe.steps * all_layer, 0.0, 0
    limit = math.ceil(recipe.most * recipe.steps)
    while (spent < budget or steps < recipe.steps) and steps < limit:
        spent += cost(steps)
        steps += 1
    return math.ceil(steps / recipe.every) * recipe.every
