"""From the share of the gain kept in a short trial to the share to expect at the end of a run.

The first steps of an Adam-like optimizer move every adapted matrix about equally far, so early on a placement keeps
little more than its share of the layers, however well it ends. In odds, share / (1 - share), the way from a trial to
the end is one factor for all placements of a run: `at_end` multiplies by it. The factor falls with the number of steps
of the trial; the constants below are fitted by benchmarks/guard, on 200-step runs of a model of 135 million parameters,
with the trial at the peak learning rate. Elsewhere they are an extrapolation.
"""

from __future__ import annotations

import math

STEPS = (2, 4, 8, 16, 32, 64)
LOG_FACTORS = (3.06, 2.98, 2.50, 1.46, 1.04, 0.49)
"""Natural logarithms of the factor after so many optimizer steps; between them interpolated in the logarithm of steps."""
SMALLEST, LARGEST = 0.02, 0.98
"""A share in the trial is taken for one within these, since odds of noise about 0 or 1 mean nothing."""


def at_end(share: float, updates: int) -> float:
    """Return the share of the gain to expect at the end where `share` was kept after `updates` optimizer steps."""
    within = min(LARGEST, max(SMALLEST, share))
    odds = within / (1 - within) * math.exp(log_factor(updates))
    return odds / (1 + odds)


def log_factor(updates: int) -> float:
    """Return the logarithm of the factor between odds, that of the nearest known number of steps beyond the ends."""
    at = min(max(updates, STEPS[0]), STEPS[-1])
    high = next(i for i, steps in enumerate(STEPS) if steps >= at)
    if STEPS[high] == at:
        return LOG_FACTORS[high]
    share = math.log(at / STEPS[high - 1]) / math.log(STEPS[high] / STEPS[high - 1])
    return LOG_FACTORS[high - 1] + share * (LOG_FACTORS[high] - LOG_FACTORS[high - 1])
