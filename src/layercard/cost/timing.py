"""Times variants of a step against each other: alternating, on the same batches, with an interval of the ratio.

Round r runs every variant once on batch r, in turn forwards and backwards (A B, B A, …), so that a machine that
slowly gets faster or slower favours none. Each step is one pair with the other variants' steps of its round; the
ratio of two variants is the exponential of the median of the paired log-ratios. Its interval is distribution-free:
the order statistics of those log-ratios between which the median lies with at least `COVERAGE` probability (the
sign test inverted), or the extremes with the smaller coverage they have where fewer than six pairs were run.

Knows nothing of models or trainers; a variant is a name, a context manager and a step.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

COVERAGE = 0.95
Clock: TypeAlias = Callable[[], float]
Told: TypeAlias = Literal["faster", "slower", "too noisy to tell"]


@dataclass(frozen=True)
class Variant:
    """One way of running a step: `entered()` puts it in force, `step(batch)` runs it on the batch of a number."""

    name: str
    entered: Callable[[], AbstractContextManager[object]]
    step: Callable[[int], None]


@dataclass(frozen=True)
class Ratio:
    """How many times longer one variant takes: `value`, and an interval that holds it with `coverage`."""

    value: float
    low: float
    high: float
    coverage: float
    pairs: int

    @property
    def told(self) -> Told:
        """What it says of the second variant: nothing where the interval holds 1."""
        if self.low <= 1 <= self.high:
            return "too noisy to tell"
        return "faster" if self.value > 1 else "slower"


@dataclass(frozen=True)
class Timings:
    """Seconds of each variant's steps, round by round."""

    seconds: Mapping[str, tuple[float, ...]]

    @property
    def rounds(self) -> int:
        """How many rounds were run."""
        return min((len(values) for values in self.seconds.values()), default=0)

    def median(self, name: str) -> float:
        """Return the median seconds of the variant's steps."""
        return statistics.median(self.seconds[name])

    def spread(self, name: str) -> float:
        """Return the interquartile range of the variant's steps, in seconds."""
        values = self.seconds[name]
        if len(values) < 2:
            return 0.0
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        return high - low

    def only(self, names: Collection[str]) -> Timings:
        """Return the timings of these variants."""
        return Timings({name: values for name, values in self.seconds.items() if name in names})

    def ratio(self, slow: str, fast: str) -> Ratio:
        """Return how many times longer a step of `slow` takes than one of `fast`."""
        pairs = zip(self.seconds[slow], self.seconds[fast], strict=True)
        return paired_ratio([math.log(a / b) for a, b in pairs])


def paired_ratio(log_ratios: Sequence[float]) -> Ratio:
    """Return the ratio that paired log-ratios speak for, with its distribution-free interval."""
    ordered = sorted(log_ratios)
    depth, coverage = _interval_depth(len(ordered))
    return Ratio(
        value=math.exp(statistics.median(ordered)),
        low=math.exp(ordered[depth - 1]),
        high=math.exp(ordered[-depth]),
        coverage=coverage,
        pairs=len(ordered),
    )


def _interval_depth(pairs: int) -> tuple[int, float]:
    """The largest k whose k-th smallest and k-th largest of `pairs` cover the median often enough; how often."""
    depth, coverage = 1, _coverage(1, pairs)
    while 2 * (depth + 1) <= pairs and _coverage(depth + 1, pairs) >= COVERAGE:
        depth, coverage = depth + 1, _coverage(depth + 1, pairs)
    return depth, coverage


def _coverage(depth: int, pairs: int) -> float:
    outside = sum(math.comb(pairs, k) for k in range(depth)) / 2**pairs
    return max(0.0, 1.0 - 2.0 * outside)


def alternate(
    variants: Sequence[Variant],
    *,
    rounds: int,
    seconds: float = math.inf,
    first: int = 0,
    clock: Clock = time.perf_counter,
) -> Timings:
    """Run every variant once a round, at most `rounds` rounds, and none that would pass `seconds` in all.

    `first` is the number of the first round, and with it of the first batch. Warm-up is the caller's: nothing here
    is thrown away. `clock` gives the seconds that steps are timed by.
    """
    taken: dict[str, list[float]] = {variant.name: [] for variant in variants}
    start, longest = time.perf_counter(), 0.0
    for number in range(first, first + rounds):
        begun = time.perf_counter()
        if begun - start + longest > seconds:
            break
        for variant in variants if number % 2 == 0 else reversed(variants):
            with variant.entered():
                taken[variant.name].append(clocked(variant.step, number, clock))
        longest = max(longest, time.perf_counter() - begun)
    return Timings({name: tuple(values) for name, values in taken.items()})


def joined(first: Timings, second: Timings) -> Timings:
    """Return the rounds of `first` followed by those of `second`."""
    return Timings({name: (*values, *second.seconds[name]) for name, values in first.seconds.items()})


def clocked(step: Callable[[int], None], batch: int, clock: Clock = time.perf_counter) -> float:
    """Return the seconds that `step(batch)` takes, the accelerator's queue emptied before and after."""
    synchronize()
    start = clock()
    step(batch)
    synchronize()
    return clock() - start


def synchronize() -> None:
    """Wait for the accelerator, where there is one."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
