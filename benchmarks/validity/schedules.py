"""Ways of training that change on the way. Each is an arm; a new one joins by being returned by `schedules`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from validity.arms import Arm
from validity.live import Live
from validity.recipe import Recipe

from layercard.cost.predict import UnitCosts


@dataclass(frozen=True)
class RisingEntry:
    """All layers train at first; later the gradient entry rises by plan (AutoFreeze, arXiv 2102.01386).

    Adapters below the entry stay at the values they have then; the optimizer goes on with its state for the others, and
    what is below is cached from the rise on.
    """

    rises: tuple[tuple[int, float], ...]
    """The step at which the entry rises, and the share of the depth that it rises to; both ascending."""

    @property
    def label(self) -> str:
        """Return the plan."""
        return "rising-" + "-".join(f"{step}to{round(100 * share)}" for step, share in self.rises)

    def key(self) -> dict[str, Any]:
        """Return the plan."""
        return {"schedule": self.label, "rises": [list(rise) for rise in self.rises]}

    def share(self, depth: int) -> float:
        """Return 1: every layer is adapted."""
        return 1.0

    def begin(self, live: Live) -> None:
        """Do nothing: every layer is adapted already."""

    def before_step(self, live: Live, step: int) -> None:
        """Raise the entry where the plan says so."""
        for at, share in self.rises:
            if step == at:
                entry = round(share * len(live.stack))
                live.freeze_below(entry)
                live.enter(entry)

    def cost(self, depth: int, step: int, epoch_steps: int, units: UnitCosts) -> float:
        """Return the cost of a step: adapters run forward everywhere, backward from the entry up."""
        risen = [(at, round(share * depth)) for at, share in self.rises if at <= step]
        at, entry = risen[-1] if risen else (0, 0)
        cached = entry > 0 and step >= at + epoch_steps
        run = depth - entry if cached else depth
        forward = run * (units.layer_forward + units.adapter_forward)
        backward = (depth - entry) * (units.layer_backward + units.adapter_backward)
        return forward + backward + units.head_forward + units.head_backward


PLANS = (((1 / 4, 1 / 3), (1 / 2, 2 / 3)), ((1 / 4, 1 / 2),), ((1 / 8, 1 / 3), (1 / 4, 2 / 3)), ((1 / 2, 1 / 2),))
"""Shares of all-layer LoRA's steps at which the entry rises, and of the depth that it rises to."""


def schedules(recipe: Recipe) -> list[Arm]:
    """Return the schedules that are judged."""
    return [RisingEntry(tuple((round(at * recipe.steps), share) for at, share in plan)) for plan in PLANS]
