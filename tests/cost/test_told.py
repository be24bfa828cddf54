"""What timed pairs are said to tell, on a clock that the test turns: known slowdowns, and runs that are the same."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
from scipy import stats

from layercard.cost.phases import PhaseWatch
from layercard.cost.timing import Timings, Variant, alternate

ROUNDS, REPETITIONS = 16, 50


class Machine:
    """A clock that steps move on: noise with rare long stalls, a drift, and a second place that is slower than the first."""

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self._random = np.random.default_rng(seed)
        self._steps = 0

    def clock(self) -> float:
        return self.now

    def run(self, seconds: float) -> None:
        noise = self._random.lognormal(0, 0.08) * (5 if self._random.random() < 0.05 else 1)
        place = 1.1 if self._steps % 2 else 1.0
        self.now += seconds * noise * place * (1 + 0.01 * self._steps)
        self._steps += 1

    def timed(self, slow: float) -> Timings:
        variants = [
            Variant("all", nullcontext, lambda number: self.run(slow * (1 + number % 8))),
            Variant("placed", nullcontext, lambda number: self.run(1.0 * (1 + number % 8))),
        ]
        return alternate(variants, rounds=ROUNDS, clock=self.clock)


def ratios(slow: float) -> list:
    return [Machine(seed).timed(slow).ratio("all", "placed") for seed in range(REPETITIONS)]


def at_most(rate: float) -> int:
    """How often something of this rate may happen in the repetitions, but for once in a thousand."""
    return int(stats.binom.ppf(0.999, REPETITIONS, rate))


@pytest.mark.parametrize("slow", [1.5, 2.0, 0.7])
def test_a_known_slowdown_is_recovered_within_its_interval(slow: float) -> None:
    found = ratios(slow)
    missed = [r for r in found if not r.low <= slow <= r.high]
    assert len(missed) <= at_most(1 - found[0].coverage)
    right, wrong = ("faster", "slower") if slow > 1 else ("slower", "faster")
    told = [r.told for r in found]
    assert wrong not in told
    assert told.count(right) >= 0.9 * REPETITIONS


def test_runs_that_are_the_same_are_told_apart_no_more_often_than_stated() -> None:
    found = ratios(1.0)
    assert found[0].coverage >= 0.95
    assert sum(r.told != "too noisy to tell" for r in found) <= at_most(1 - found[0].coverage)


def test_no_noise_and_no_difference_tell_nothing() -> None:
    assert Timings({"all": (1.0,) * 6, "placed": (1.0,) * 6}).ratio("all", "placed").told == "too noisy to tell"


def test_recorded_timings_by_hand() -> None:
    placed = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    recorded = Timings(
        {"all": (1.1, 1.2, 1.3, 1.4, 1.5, 1.6), "placed": placed, "other": (0.9, 1.4, 1.4, 1.4, 1.4, 1.4)}
    )
    ratio = recorded.ratio("all", "placed")
    assert (ratio.low, ratio.high) == (pytest.approx(1.1), pytest.approx(1.6))
    assert ratio.value == pytest.approx((1.3 * 1.4) ** 0.5)
    assert (ratio.coverage, ratio.told) == (pytest.approx(1 - 2 / 64), "faster")
    assert recorded.ratio("placed", "all").told == "slower"
    assert recorded.ratio("other", "placed").told == "too noisy to tell"


def test_phases_are_the_medians_between_marks() -> None:
    times = iter([0, 1, 3, 3.5, 10, 12, 13, 13.5, 20, 23, 30, 31])
    watch = PhaseWatch(lambda: next(times))
    for _ in range(3):
        watch.start()
        for phase in ("forward", "backward", "optimizer"):
            watch.mark(phase)
    assert watch.medians() == {"forward": 2, "backward": 2, "optimizer": 0.5}
