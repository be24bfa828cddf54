"""How many examples a fuzz test tries: a suite's worth, or as many times more as `FUZZ_TIMES` says (`make fuzz`)."""

from __future__ import annotations

import os

TIMES = int(os.environ.get("FUZZ_TIMES", "1"))


def examples(count: int = 100) -> int:
    """Return `count`, or that many times more."""
    return count * TIMES
