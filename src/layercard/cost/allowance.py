"""What timing may cost in a run: `Allowance`, in numbers alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from layercard.settings.checks import MOST_BUDGET

FEWEST_ROUNDS = 3
"""Timed rounds without which there is no interval worth its name."""


def way_out(setting: str, share: float, what: str) -> str:
    """Return what to do where a budget is too small: raise the `setting` to this `share`, or that none is enough."""
    if share > MOST_BUDGET:
        return f"No `{setting}` is enough: it is {MOST_BUDGET} at most."
    return f"Raise `{setting}` to {math.ceil(share * 100 - 1e-9) / 100:g} to {what} all the same."


@dataclass(frozen=True)
class Allowance:
    """What timing may cost: a share (`budget`) of the planned micro-batches (`steps`), half of them all-layer steps.

    `speedup` is the predicted one: an all-layer step costs that many placed steps. So whether a run is long enough does
    not depend on it.
    """

    steps: int
    budget: float
    speedup: float

    @property
    def placed_steps(self) -> float:
        """How many placed steps the budget is worth."""
        return self.steps * self.budget * (1 + self.speedup) / 2

    def holds(self, *, split: bool, beside: int = 0) -> bool:
        """Whether warm-up and the fewest rounds of two variants fit, or of three, the third no dearer than the first.

        `beside` are placed steps that have to fit too.
        """
        return self.placed_steps >= self._least(split) + beside - 1e-9

    def too_short(self) -> str | None:
        """Return why the run cannot pay for timing, or None."""
        if self.holds(split=False):
            return None
        least = 2 * (1 + FEWEST_ROUNDS)
        needed = f"; {math.ceil(least / self.budget)} planned steps can" if self.budget else ""
        return (
            f"The run is too short: {self.budget:.1%} of its {self.steps} planned steps cannot pay for timing, which takes "
            f"{least} steps{needed}. {way_out('measure_budget', least / max(1, self.steps), 'measure')}"
        )

    def _least(self, split: bool) -> float:
        return (1 + FEWEST_ROUNDS) * (1 + (2 if split else 1) * self.speedup)
