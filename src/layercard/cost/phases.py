"""Seconds of the phases of a training step, as act-lora.txt's table 7 has them: forward, backward, optimizer.

The accelerator's queue is emptied at every mark, which keeps it from working ahead: a step clocked so takes longer than
one that runs free. So phases come from steps of their own, and step times from others.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

from layercard.cost.timing import Clock, synchronize

PHASES = ("forward", "backward", "optimizer")


class PhaseWatch:
    """Keeps the seconds between marks, by the phase that a mark ends."""

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self._clock = clock
        self._last = 0.0
        self._seconds: dict[str, list[float]] = {phase: [] for phase in PHASES}

    def start(self) -> None:
        """Begin a step."""
        synchronize()
        self._last = self._clock()

    def mark(self, phase: str) -> None:
        """Note that this phase of the step ended."""
        synchronize()
        now = self._clock()
        self._seconds[phase].append(now - self._last)
        self._last = now

    def medians(self) -> Mapping[str, float]:
        """Return the median seconds of every phase that was run."""
        return {phase: statistics.median(values) for phase, values in self._seconds.items() if values}
