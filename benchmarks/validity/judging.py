"""The arithmetic of judging: ranks, regret, losses at equal time, and the time to a loss. Knows of no files and no models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Curve:
    """Held-out losses of one training at ascending times; the first point is before training."""

    steps: tuple[float, ...]
    times: tuple[float, ...]
    losses: tuple[float, ...]

    def at_step(self, step: float) -> float | None:
        """Return the loss at a step; None where the curve ends before."""
        return _between(self.steps, self.losses, step)

    def at_time(self, time: float) -> float | None:
        """Return the loss at a time, on a straight line between two points; None where the curve ends before."""
        return _between(self.times, self.losses, time)

    def time_at_step(self, step: float) -> float | None:
        """Return the time that training took until a step."""
        return _between(self.steps, self.times, step)

    def time_to(self, loss: float) -> float | None:
        """Return when the loss is first no higher than `loss`, on straight lines between points; None if never."""
        if self.losses[0] <= loss:
            return self.times[0]
        for i in range(1, len(self.losses)):
            before, after = self.losses[i - 1], self.losses[i]
            if after <= loss:
                share = (before - loss) / (before - after)
                return self.times[i - 1] + share * (self.times[i] - self.times[i - 1])
        return None


def _between(xs: Sequence[float], ys: Sequence[float], x: float) -> float | None:
    """Return y at x by straight lines, None outside; ends may be missed by rounding."""
    slack = 1e-9 * max(1.0, abs(x))
    if not xs[0] - slack <= x <= xs[-1] + slack:
        return None
    return float(np.interp(x, xs, ys))


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Return the mean over seeds at the steps that all have."""
    length = min(len(curve.steps) for curve in curves)
    steps = curves[0].steps[:length]
    if any(curve.steps[:length] != steps for curve in curves):
        raise ValueError(f"Curves were judged at other steps: {[curve.steps for curve in curves]}.")
    times = tuple(math.fsum(c.times[i] for c in curves) / len(curves) for i in range(length))
    losses = tuple(math.fsum(c.losses[i] for c in curves) / len(curves) for i in range(length))
    return Curve(steps, times, losses)


def spearman(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Return Spearman's ρ, ties at their mean ranks; None for fewer than three or where either is constant."""
    if len(one) < 3 or len(set(one)) == 1 or len(set(other)) == 1:
        return None
    return float(stats.spearmanr(one, other).statistic)


def spearman_bound(count: int, level: float = 0.05) -> float | None:
    """Return the |ρ| that independent rankings of `count` pass with probability `level`; by Student's t, None under four."""
    if count < 4:
        return None
    t = float(stats.t.ppf(1 - level / 2, count - 2))
    return t / math.sqrt(count - 2 + t * t)


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Return the mean of two values or more and the ends of Student's interval around it."""
    mean, count = float(np.mean(values)), len(values)
    half = float(stats.t.ppf((1 + level) / 2, count - 1) * np.std(values, ddof=1) / math.sqrt(count))
    return mean, mean - half, mean + half


def predicted(importance: Sequence[float], layers: Sequence[int], *, total: bool) -> float:
    """Return what a score predicts for a set of layers: the sum of importance, or its mean."""
    values = [importance[layer] for layer in layers]
    return math.fsum(values) if total else math.fsum(values) / len(values)


def regrets(losses: Mapping[str, float], before: float) -> dict[str, float | None]:
    """Return how far each loss lies behind the best, as a share of the best's gain over `before`; None where none gained."""
    best = min(losses.values())
    gain = before - best
    if gain <= 0:
        return dict.fromkeys(losses)
    return {name: (loss - best) / gain for name, loss in losses.items()}


def time_ratio(curve: Curve, all_layer: Curve, step: float) -> float | None:
    """Return the time to all-layer LoRA's loss at `step` over the time that it takes itself; None if not reached."""
    target, whole = all_layer.at_step(step), all_layer.time_at_step(step)
    if target is None or whole is None:
        raise ValueError(f"All-layer LoRA was not judged at step {step}: {all_layer.steps}.")
    found = curve.time_to(target)
    return None if found is None else found / whole


def times(phases: Sequence[Mapping[str, Any]], epoch_steps: int, steps: Sequence[float]) -> list[float]:
    """Return when an arm has trained each of `steps`, by what each kind of its steps costs (`checkpointed.py`).

    A phase goes through an epoch that its cache has not seen, then takes one step that checks the cache.
    """
    found, spent, done = [], 0.0, 0
    for wanted in steps:
        while done < wanted:
            phase = [phase for phase in phases if phase["at"] <= done][-1]
            since = done - phase["at"]
            kind = "seen" if since < epoch_steps else "checked" if since == epoch_steps else "cached"
            spent += phase[kind]
            done += 1
        found.append(spent)
    return found
