"""How many micro-batches a run takes: `PlannedSteps` before it, `StepsRun` after it. Numbers alone.

An epoch's last optimizer step has as many micro-batches as are left in the epoch, so a run over few rows takes fewer than its
steps times `gradient_accumulation_steps`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class PlannedSteps:
    """Optimizer steps from `begins` to before `ends`, of `each` micro-batches where the epoch has as many left.

    `epoch` is how many micro-batches an epoch has; None of a stream, whose end nobody knows.
    """

    begins: int
    ends: int
    each: int
    epoch: int | None = None

    @property
    def steps(self) -> int:
        """Optimizer steps that are planned."""
        return max(0, self.ends - self.begins)

    @property
    def micro_batches(self) -> int:
        """Micro-batches of these steps."""
        return max(0, self._before(self.ends) - self._before(self.begins))

    @property
    def first_seen(self) -> int:
        """Micro-batches of them whose examples this run has not seen before: one epoch's, of a stream all."""
        return self.micro_batches if not self.epoch else min(self.epoch, self.micro_batches)

    def _before(self, step: int) -> int:
        if not self.epoch:
            return step * self.each
        epochs, rest = divmod(step, math.ceil(self.epoch / self.each))
        return epochs * self.epoch + min(rest * self.each, self.epoch)


@dataclass
class StepsRun:
    """What a training has run so far, counted as it runs."""

    steps: int = 0
    micro_batches: int = 0
    cached: float = 0.0
    """Micro-batches whose prefix came from the cache; of one with some examples in it, their share."""

    def add(self, micro_batches: int, share_cached: float) -> None:
        """Count one optimizer step."""
        self.steps += 1
        self.micro_batches += micro_batches
        self.cached += share_cached * micro_batches
