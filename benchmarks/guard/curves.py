"""How well the share of gain kept after a few steps tells the one at the end of the run.

A share after few steps lies far below the one at the end: the first optimizer steps move every adapted matrix equally
far, so few layers fall behind and catch up later. In odds, share / (1 - share), the way to the end is one factor K for
all placements; it falls with the distance that the optimizer has gone, steps times learning rate. `left_out` judges
that on runs that K was not fitted on.
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
    """One placement in one run: its share after some steps and at the end."""

    data: str
    rate: float
    placement: str
    steps: int
    early: float
    end: float

    @property
    def run(self) -> tuple[str, float]:
        """What placements share: the data set and the learning rate."""
        return self.data, self.rate

    @property
    def distance(self) -> float:
        """Steps times the learning rate."""
        return self.steps * self.rate


def logit(share: float) -> float:
    """Return the logarithm of the odds, `EDGE` away from certainty."""
    inside = min(1 - EDGE, max(EDGE, share))
    return math.log(inside / (1 - inside))


def gain(pair: Pair) -> float:
    """Return log K of one pair: the gain in log odds from its early share to the end."""
    return logit(pair.end) - logit(pair.early)


def fitted(pairs: Sequence[Pair]) -> dict[float, float]:
    """Return the mean log K at each distance."""
    distances = sorted({round(pair.distance, 9) for pair in pairs})
    return {d: float(np.mean([gain(p) for p in pairs if round(p.distance, 9) == d])) for d in distances}


def at_end(pair: Pair, table: Mapping[float, float]) -> float:
    """Return the share at the end that an early share predicts; log K is interpolated in the logarithm of distance."""
    log_k = np.interp(math.log(pair.distance), [math.log(d) for d in table], list(table.values()))
    return 1 / (1 + math.exp(-logit(pair.early) - float(log_k)))


def left_out(judged: Sequence[Pair], pairs: Sequence[Pair]) -> list[float]:
    """Return each judged pair's predicted share at the end, K fitted on those `pairs` that are of other runs.

    Raises `ValueError` where there are no other runs.
    """
    predicted = []
    for pair in judged:
        others = [other for other in pairs if other.run != pair.run]
        if not others:
            raise ValueError(f"There are no runs beside that of {pair.run} to fit on.")
        predicted.append(at_end(pair, fitted(others)))
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
