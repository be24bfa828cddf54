"""What the steps of a schedule take, phase by phase: a run that ends early, or pays off, does so in one of them. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from layercard.cost.planned import PlannedSteps


@dataclass(frozen=True)
class PhaseCost:
    """A micro-batch takes `seconds` until optimizer step `ends`."""

    ends: int
    seconds: float


def seconds_of(phases: Sequence[PhaseCost], planned: PlannedSteps) -> float:
    """Return the mean seconds of the micro-batches of `planned`; 0 where there are none."""
    many = planned.micro_batches
    return sum(steps.micro_batches * seconds for seconds, steps in _each(phases, planned)) / many if many else 0.0


def earned_back(phases: Sequence[PhaseCost], planned: PlannedSteps, baseline: float, spent: float) -> int | None:
    """Return after how many steps `spent` seconds are saved beside micro-batches of `baseline` seconds; None where never.

    Where they are not in the planned steps, those of the last phase are thought to go on.
    """
    before, a_step = 0, 0.0
    for seconds, steps in _each(phases, planned):
        a_step = (baseline - seconds) * steps.micro_batches / steps.steps
        if a_step * steps.steps >= spent:
            break
        before, spent = before + steps.steps, spent - a_step * steps.steps
    return before + math.ceil(spent / a_step) if a_step > 0 else None


def _each(phases: Sequence[PhaseCost], planned: PlannedSteps) -> Iterator[tuple[float, PlannedSteps]]:
    """Yield the planned steps of each phase that has any, with the seconds of a micro-batch there."""
    begins = planned.begins
    for phase in phases:
        ends = max(begins, min(phase.ends, planned.ends))
        if ends > begins:
            yield phase.seconds, replace(planned, begins=begins, ends=ends)
        begins = ends
