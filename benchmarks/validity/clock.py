"""CPU time of training, evaluation left out, in seconds and in units that do not swing with the machine's load.

On a shared machine the same work takes other times at other hours, also in CPU time: cores share caches and memory. So
a small reference, the frozen model's forward pass over one fixed batch, is timed at the beginning and at every
evaluation, and each stretch of training is divided by the mean of the references at its ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable

REFERENCES = 2


class TrainingClock:
    """Counts the process's CPU time between `go` and `stop`; `reference` is the work that it is compared with."""

    def __init__(self, reference: Callable[[], None], *, now: Callable[[], float] = time.process_time) -> None:
        self._reference, self._now = reference, now
        reference()  # the first pass is slow
        self._last = self._referred()
        self.references = [self._last]
        self.seconds = self.units = 0.0
        self._began = 0.0

    def go(self) -> None:
        """Begin or go on."""
        self._began = self._now()

    def stop(self) -> None:
        """Count the stretch since `go`."""
        stretch = self._now() - self._began
        reference = self._referred()
        self.seconds += stretch
        self.units += stretch / ((self._last + reference) / 2)
        self._last = reference
        self.references.append(reference)

    def _referred(self) -> float:
        """Return the seconds of one reference, the fastest of a few."""
        found = []
        for _ in range(REFERENCES):
            began = self._now()
            self._reference()
            found.append(self._now() - began)
        return min(found)
