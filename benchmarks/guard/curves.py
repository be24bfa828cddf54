"""How well the share of gain kept after a few steps tells the one at the end of the run.

A share after few steps lies far below the one at the end: the first optimizer steps move every adapted matrix equally
far, so few layers fall behind and catch up later. What is tried here is one constant a number of steps: the odds of the
share at the end are the odds after n steps times K(n). It is judged on data sets that it was not fitted on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

EDGE = 0.02
"""Shares are kept this far from 0 and 1 before odds are taken."""


@dataclass(frozen=True)
class Pair:
    """One placement in one run: its share after some steps and at the end, and which data set it learned."""

    data: str
    rate: float
    placement: str
    early: float
    end: float


def logit(share: float) -> float:
    """Return the logarithm of the odds, `EDGE` away from certainty."""
    inside = min(1 - EDGE, max(EDGE, share))
    return math.log(inside / (1 - inside))


def fitted(pairs: Sequence[Pair]) -> float:
    """Return log K: the mean gain in log odds between a share and the one at the end."""
    return float(np.mean([logit(pair.end) - logit(pair.early) for pair in pairs]))


def at_end(share: float, log_k: float) -> float:
    """Return the share at the end that a share after few steps predicts."""
    return 1 / (1 + math.exp(-logit(share) - log_k))


def left_out(pairs: Sequence[Pair]) -> list[float]:
    """Return each pair's predicted share at the end, fitted on the other data sets alone (on all, where it is the only one)."""
    predicted = []
    for pair in pairs:
        others = [other for other in pairs if other.data != pair.data] or list(pairs)
        predicted.append(at_end(pair.early, fitted(others)))
    return predicted


def warnings(predicted: Sequence[float], pairs: Sequence[Pair], threshold: float) -> Mapping[str, int]:
    """Return how often a warning below `threshold` is right, wrong, missed, or rightly not given."""
    count = {"right": 0, "wrong": 0, "missed": 0, "rightly silent": 0}
    for share, pair in zip(predicted, pairs, strict=True):
        warned, bad = share < threshold, pair.end < threshold
        count[{(1, 1): "right", (1, 0): "wrong", (0, 1): "missed", (0, 0): "rightly silent"}[warned, bad]] += 1
    return count


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return the rank correlation; None for fewer than three."""
    return round(float(spearmanr(first, second).statistic), 2) if len(first) > 2 else None
