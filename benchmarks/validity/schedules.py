"""Ways of training that change on the way. Each is an arm; a new one joins by being returned by `schedules`."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
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


@dataclass(frozen=True)
class GradientRise:
    """All layers train at first; the entry rises where the gradients of the lowest layers change least (AutoFreeze).

    Every `interval` steps each layer's summed gradient is compared with that of the interval before: η is the relative
    change of its norm. The entry rises past all consecutive lowest layers whose η is at most the given quantile of those that
    still train, and never above `highest`.
    """

    interval: int
    quantile: float
    first: int
    """The step before which nothing rises: warm-up, and an interval to compare with."""
    highest: float = 2 / 3
    """The largest share of the depth to stop training."""

    @property
    def label(self) -> str:
        """Return the quantile."""
        return f"rising-by-gradients-{round(100 * self.quantile)}"

    def key(self) -> dict[str, Any]:
        """Return the rule."""
        return {
            "schedule": self.label, "interval": self.interval, "quantile": self.quantile, "first": self.first,
            "highest": self.highest,
        }  # fmt: skip

    def share(self, depth: int) -> float:
        """Return 1: every layer is adapted."""
        return 1.0

    def begin(self, live: Live) -> None:
        """Sum every layer's gradients from now on."""
        live.memory = {"sums": {}, "norms": None}
        for parameter in live.trained:
            parameter.register_post_accumulate_grad_hook(partial(_add, live.memory["sums"]))

    def before_step(self, live: Live, step: int) -> None:
        """Raise the entry where an interval has ended and the lowest layers changed least."""
        if step == 0 or step % self.interval:
            return
        sums, before = live.memory["sums"], live.memory["norms"]
        norms = [_norm(sums, layer) for layer in live.stack.layers]
        sums.clear()
        live.memory["norms"] = norms
        if step < self.first or before is None:
            return
        entry = rise_by(before, norms, live.entry, self.quantile, int(self.highest * len(norms)))
        if entry > live.entry:
            live.freeze_below(entry)
            live.enter(entry)

    def cost(self, depth: int, step: int, epoch_steps: int, units: UnitCosts) -> float:
        """Return the cost of a step if the entry rose to half of the depth at `first`: its rises are not known ahead."""
        return RisingEntry(((self.first, 1 / 2),)).cost(depth, step, epoch_steps, units)


def rise_by(before: Sequence[float], now: Sequence[float], entry: int, quantile: float, highest: int) -> int:
    """Return the entry after a look at two intervals' gradient norms by layer; what is below `entry` trains no more."""
    changes = [abs(old - new) / old if old else 0.0 for old, new in zip(before[entry:], now[entry:], strict=True)]
    limit = sorted(changes)[int(quantile * (len(changes) - 1))]
    still = next((i for i, change in enumerate(changes) if change > limit), len(changes))
    return min(entry + still, max(entry, highest))


def _add(sums: dict[int, Tensor], parameter: Tensor) -> None:
    grad = parameter.grad
    assert grad is not None
    held = sums.get(id(parameter))
    sums[id(parameter)] = grad.clone() if held is None else held.add_(grad)


def _norm(sums: dict[int, Tensor], layer: nn.Module) -> float:
    return math.sqrt(sum(float(sums[id(p)].square().sum()) for p in layer.parameters() if id(p) in sums))


@dataclass(frozen=True)
class DroppedBackward:
    """Each step draws layers that run forward without a graph; the others get a gradient (DropBP, arXiv 2402.17812)."""

    rate: float
    """The share of layers that are drawn, as many in each step."""

    @property
    def label(self) -> str:
        """Return the rate."""
        return f"dropped-{round(100 * self.rate)}"

    def key(self) -> dict[str, Any]:
        """Return the rate."""
        return {"schedule": self.label, "rate": self.rate}

    def share(self, depth: int) -> float:
        """Return 1: every layer is adapted."""
        return 1.0

    def begin(self, live: Live) -> None:
        """Do nothing: every layer is adapted already."""

    def before_step(self, live: Live, step: int) -> None:
        """Draw."""
        live.drop_backward(self._drawn(len(live.stack), step))

    def cost(self, depth: int, step: int, epoch_steps: int, units: UnitCosts) -> float:
        """Return the cost of a step: backward through the layers between the lowest that is kept and the head that are kept."""
        kept = depth - len(self._drawn(depth, step))
        forward = depth * (units.layer_forward + units.adapter_forward) + units.head_forward
        return forward + kept * (units.layer_backward + units.adapter_backward) + units.head_backward

    def _drawn(self, depth: int, step: int) -> frozenset[int]:
        """Return the step's layers; the same in every run."""
        return frozenset(random.Random(f"dropped {step}").sample(range(depth), round(self.rate * depth)))


@dataclass(frozen=True)
class RedrawnEntry(DroppedBackward):
    """Each step draws the gradient entry: gradients are exact above it, and there are none below.

    Every layer is the entry equally often, so that on average half of the backward pass is left, and the lowest layer
    learns in one of `depth` steps.
    """

    @property
    def label(self) -> str:
        """Return the number of entries to draw from, as a share of the depth."""
        return f"redrawn-{round(100 * self.rate)}"

    def _drawn(self, depth: int, step: int) -> frozenset[int]:
        return frozenset(range(random.Random(f"entry {step}").randrange(max(1, round(self.rate * depth)))))


PLANS = (((1 / 4, 1 / 3), (1 / 2, 2 / 3)), ((1 / 4, 1 / 2),), ((1 / 8, 1 / 3), (1 / 4, 2 / 3)), ((1 / 2, 1 / 2),))
"""Shares of all-layer LoRA's steps at which the entry rises, and of the depth that it rises to."""


def schedules(recipe: Recipe) -> list[Arm]:
    """Return the schedules that are judged, most interesting first: results come in this order."""
    rising = [RisingEntry(tuple((round(at * recipe.steps), share) for at, share in plan)) for plan in PLANS]
    by_gradients = [GradientRise(5, quantile, recipe.steps // 4) for quantile in (0.5, 0.8)]
    return [*rising, *by_gradients, RedrawnEntry(1.0), DroppedBackward(0.5), DroppedBackward(0.75)]
