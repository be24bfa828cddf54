"""From the share of the gain kept in a short trial to the share to expect at the end of a run.

The first steps of an Adam-like optimizer move every adapted matrix about equally far, so early on a placement keeps
little more than its share of the layers, however well it ends. In odds, share / (1 - share), the way from a trial to
the end is one factor for all placements of a run; `at_end` multiplies by it. The factor falls with how far the trial
went, its steps times their learning rate.

The constants come from benchmarks/guard: 200-step runs of a model of 135 million parameters with AdamW, adapters of rank
16 scaled by 2, two to four examples a step, the trial at the peak learning rate. They were fitted on six placements, and
foretold the ends of 24 others (other layers, another data set, a higher rate) with an error of 0.05 (rms); elsewhere they
are an extrapolation. `interval_at_end` adds how far the factor lay from theirs in all 30. For
optimizers that are not Adam-like a learning rate says nothing of how far a step goes; there the smallest factor is
taken, which warns too often rather than too seldom.
"""

from __future__ import annotations

import math
from bisect import bisect_left

REFERENCE_RATE = 2e-4
STEPS = (2, 4, 8, 16, 32, 64, 160)
"""Optimizer steps at the reference learning rate."""
LOG_FACTORS = (3.1, 3.0, 2.3, 1.25, 0.8, 0.5, 0.35)
"""Natural logarithm of the factor after each; between them interpolated in the logarithm of steps."""
DEVIATION = 0.56
"""How far the logarithm of the factor lay from this table over 30 placements and 2 to 64 steps (rms)."""
SMALLEST, LARGEST = 0.02, 0.98
"""A share in the trial is taken for one within these, since odds of noise about 0 or 1 mean nothing."""


def at_end(share: float, updates: int, learning_rate: float | None) -> float:
    """Return the share of the gain to expect at the end where `share` was kept after `updates` optimizer steps.

    `learning_rate` is that of the trial, None for an optimizer that is not Adam-like.
    """
    return _moved(share, log_factor(updates, learning_rate))


def interval_at_end(low: float, high: float, updates: int, learning_rate: float | None) -> tuple[float, float]:
    """Return the interval at the end for one in the trial, wider by what the factor differed between runs."""
    factor = log_factor(updates, learning_rate)
    return _moved(low, factor - DEVIATION), _moved(high, factor + DEVIATION)


def _moved(share: float, log_odds: float) -> float:
    within = min(LARGEST, max(SMALLEST, share))
    odds = within / (1 - within) * math.exp(log_odds)
    return odds / (1 + odds)


def log_factor(updates: int, learning_rate: float | None) -> float:
    """Return the logarithm of the factor between odds; beyond the known distances that of the nearest."""
    at = min(max(_distance(updates, learning_rate), STEPS[0]), STEPS[-1])
    high = bisect_left(STEPS, at)
    if high == 0:
        return LOG_FACTORS[0]
    share = math.log(at / STEPS[high - 1]) / math.log(STEPS[high] / STEPS[high - 1])
    return LOG_FACTORS[high - 1] + share * (LOG_FACTORS[high] - LOG_FACTORS[high - 1])


def _distance(updates: int, learning_rate: float | None) -> float:
    """How far a trial went, in steps at the reference rate; as far as can be where that is not known."""
    return math.inf if learning_rate is None else updates * learning_rate / REFERENCE_RATE


def is_adam_like(optimizer: object) -> bool:
    """Whether an optimizer, by the name of its class, takes steps as long as its learning rate in every entry."""
    return "adam" in type(optimizer).__name__.lower()
