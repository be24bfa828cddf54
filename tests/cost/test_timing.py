from contextlib import contextmanager

import numpy as np
import pytest
from scipy import stats

from layercard.cost.timing import Timings, Variant, alternate, clocked, joined, paired_ratio


def _variants(log):
    @contextmanager
    def entered(name):
        log.append(f"+{name}")
        yield
        log.append(f"-{name}")

    return [Variant(n, lambda n=n: entered(n), lambda batch, n=n: log.append(f"{n}{batch}")) for n in "AB"]


def test_variants_alternate_on_the_same_batches_and_each_is_in_force_only_for_its_step():
    log = []
    timings = alternate(_variants(log), rounds=2)
    assert log == ["+A", "A0", "-A", "+B", "B0", "-B", "+B", "B1", "-B", "+A", "A1", "-A"]
    assert {len(v) for v in timings.seconds.values()} == {timings.rounds} == {2}


def test_no_round_starts_that_would_pass_the_budget_of_seconds():
    import time

    spent = []
    slow = Variant(
        "A",
        lambda: contextmanager(lambda: iter([None]))(),
        lambda batch: (time.sleep(0.02), spent.append(batch)),
    )
    assert alternate([slow], rounds=1000, seconds=0.1).rounds <= 5
    assert len(spent) >= 1


def test_clocked_seconds_are_at_least_those_slept():
    import time

    assert clocked(lambda batch: time.sleep(0.01), 0) >= 0.01


@pytest.mark.parametrize("pairs", [3, 5, 6, 12, 20, 41])
def test_the_interval_covers_as_often_as_it_says(pairs):
    ratio = paired_ratio(np.linspace(0, 1, pairs).tolist())
    depth = int((np.log(ratio.low) * (pairs - 1)).round()) + 1
    assert ratio.coverage == pytest.approx(1 - 2 * stats.binom.cdf(depth - 1, pairs, 0.5))
    if pairs >= 6:
        assert ratio.coverage >= 0.95 > 1 - 2 * stats.binom.cdf(depth, pairs, 0.5)


def test_the_interval_holds_the_true_ratio_in_simulation():
    generator = np.random.default_rng(0)
    hits = [
        (r := paired_ratio((np.log(2) + generator.standard_cauchy(15)).tolist())).low <= 2 <= r.high for _ in range(400)
    ]
    assert np.mean(hits) > 0.93


def test_a_common_drift_of_the_machine_leaves_the_ratio_alone():
    drift = np.linspace(1, 9, 11)
    timings = Timings({"slow": tuple(3 * drift), "fast": tuple(drift)})
    ratio = timings.ratio("slow", "fast")
    assert ratio.value == pytest.approx(3) and ratio.low == pytest.approx(3) and ratio.high == pytest.approx(3)
    assert timings.median("fast") == 5 and timings.spread("fast") == pytest.approx(4)


def test_rounds_join():
    one, two = Timings({"a": (1.0,), "b": (2.0,)}), Timings({"a": (3.0,), "b": (4.0,)})
    assert joined(one, two) == Timings({"a": (1.0, 3.0), "b": (2.0, 4.0)})
