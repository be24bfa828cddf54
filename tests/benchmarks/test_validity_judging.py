"""The validity benchmark's arithmetic: judging, learning rates, keys, lengths of runs, clock and average."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from layercard.cost.predict import UnitCosts

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from validity import judging, rates, results, work
from validity.arms import FixedLayers, FixedModules, all_layers
from validity.averaging import Average
from validity.clock import TrainingClock
from validity.judging import Curve
from validity.recipe import Recipe, steps_for
from validity.schedules import RisingEntry, schedules

LOSSES = st.lists(st.floats(0.1, 9.0), min_size=4, max_size=12)


@given(st.permutations(range(8)), st.permutations(range(8)))
def test_spearman_is_its_formula_without_ties(one: list[int], other: list[int]) -> None:
    squares = sum((a - b) ** 2 for a, b in zip(one, other, strict=True))
    assert judging.spearman(one, other) == pytest.approx(1 - 6 * squares / (8 * 63))


def test_spearman_with_ties_is_pearson_of_mean_ranks() -> None:
    found = judging.spearman([1, 1, 2, 3, 3, 3], [2, 5, 5, 1, 7, 7])
    ranks = [1.5, 1.5, 3, 5, 5, 5], [2, 3.5, 3.5, 1, 5.5, 5.5]
    assert found == pytest.approx(np.corrcoef(*ranks)[0, 1])


def test_spearman_of_too_few_or_of_constants_is_not_known() -> None:
    assert judging.spearman([1, 2], [2, 1]) is None
    assert judging.spearman([1, 1, 1], [3, 2, 1]) is None


def test_the_bound_of_spearman_has_the_level_that_permutations_have() -> None:
    bound = judging.spearman_bound(7)
    assert bound is not None
    still = range(7)
    passed = [abs(stats.spearmanr(still, p).statistic) > bound for p in itertools.permutations(still)]
    assert np.mean(passed) == pytest.approx(0.05, abs=0.015)


@given(LOSSES)
def test_the_time_to_a_loss_is_the_first_at_which_the_curve_is_there(losses: list[float]) -> None:
    losses = [9.5, *losses]
    curve = Curve(tuple(range(len(losses))), tuple(2.0 * i for i in range(len(losses))), tuple(losses))
    target = losses[-1]
    found = curve.time_to(target)
    assert found is not None
    at_that_time = curve.at_time(found)
    assert at_that_time is not None
    assert at_that_time <= target + 1e-6
    before = np.linspace(0, found, 50, endpoint=False)
    assert all(np.interp(t, curve.times, losses) >= target - 1e-6 for t in before)
    assert curve.time_to(min(losses) - 0.05) is None


def test_equal_time_is_read_between_points_and_never_beyond_the_end() -> None:
    curve = Curve((0, 10, 20), (0.0, 5.0, 8.0), (3.0, 2.0, 1.4))
    assert curve.at_time(6.5) == pytest.approx(1.7)
    assert curve.at_step(15) == pytest.approx(1.7)
    assert curve.time_at_step(20) == 8.0
    assert curve.at_time(8.1) is None


def test_all_layer_lora_reaches_its_own_loss_in_its_own_time() -> None:
    whole = Curve((0, 10, 20), (0.0, 5.0, 10.0), (3.0, 2.0, 1.5))
    assert judging.time_ratio(whole, whole, 20) == pytest.approx(1.0)
    twice_as_fast = Curve(whole.steps, (0.0, 2.5, 5.0), whole.losses)
    assert judging.time_ratio(twice_as_fast, whole, 20) == pytest.approx(0.5)
    never = Curve(whole.steps, whole.times, (3.0, 2.0, 1.6))
    assert judging.time_ratio(never, whole, 20) is None


def test_the_mean_curve_is_that_of_its_points_and_refuses_other_steps() -> None:
    one, other = Curve((0, 5), (0.0, 1.0), (3.0, 1.0)), Curve((0, 5), (0.0, 3.0), (3.0, 2.0))
    assert judging.mean_curve([one, other]) == Curve((0, 5), (0.0, 2.0), (3.0, 1.5))
    with pytest.raises(ValueError, match="other steps"):
        judging.mean_curve([one, Curve((0, 6), (0.0, 3.0), (3.0, 2.0))])


@given(st.lists(st.floats(0.5, 2.0), min_size=2, max_size=9))
def test_the_best_has_no_regret_and_a_loss_as_before_has_all(losses: list[float]) -> None:
    named = {str(i): loss for i, loss in enumerate(losses)} | {"untrained": 3.0}
    found = judging.regrets(named, before=3.0)
    assert min(found.values()) == 0
    assert found["untrained"] == pytest.approx(1.0)
    order = sorted(named, key=lambda name: named[name])
    assert [found[name] for name in order] == sorted(found.values())


@given(st.lists(st.integers(-50, 50).map(float), min_size=2, max_size=9).filter(lambda values: len(set(values)) > 1))
def test_an_interval_is_that_of_students_test(values: list[float]) -> None:
    mean, low, high = judging.mean_interval(values)
    theirs = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((float(np.mean(values)), theirs.low, theirs.high), abs=1e-9)


def pair_of(name: str, losses: dict[str, dict[int, float]]) -> results.PairResults:
    """A pair that trained one step from a loss of 2, where all-layer LoRA ended at 1: an arm that ends at 1.25 kept 75%."""
    keys = {arm: {"layers": [number]} for number, arm in enumerate(losses)} | {
        "all-layer": {"layers": [0, 1, 2, 3, 4, 5, 6]}
    }
    ends = losses | {"all-layer": dict.fromkeys(next(iter(losses.values())), 1.0)}
    runs = {
        results.key_text(keys[arm]): {
            seed: {"points": [{"step": 1, "units": 1.0, "loss": end}]} for seed, end in of.items()
        }
        for arm, of in ends.items()
    }
    choices = {"depth": 7, "loss_before": 2.0, "selectors": keys, "scores": {}}
    return results.PairResults(name, choices, runs, steps=1)


def test_an_arm_is_compared_with_the_draws_of_chance_from_the_same_seed_and_pairs_count_alike() -> None:
    chance = {"random 0": {0: 1.2, 1: 1.4}, "random 1": {0: 1.4, 1: 1.6}}  # 70% and 50% kept, on both pairs
    first = pair_of("first", chance | {"some": {0: 1.1, 1: 1.5}, "once": {0: 1.0, 1: 1.0}})  # 90% and 50%
    second = pair_of("second", chance | {"some": {0: 1.2, 1: 1.4}})  # 80% and 60%
    found = {row["arm"]: row for row in results.against_chance({"first": (first, [0, 1]), "second": (second, [0, 1])})}
    assert set(found) == {"all-layer", "some", "random 0", "random 1"}
    some = found["some"]
    assert (some["mean"], some["lowest"], some["ahead"]) == pytest.approx((0.70, 0.50, 0.10))
    assert (some["pairs_ahead"], some["pairs"]) == (2, 2)
    assert some["low"] == pytest.approx(some["high"]) == pytest.approx(0.10)  # both pairs say the same
    assert found["random 0"]["ahead"] == pytest.approx(0.10) == pytest.approx(-found["random 1"]["ahead"])


def test_what_a_score_predicts_is_a_sum_or_a_mean() -> None:
    assert judging.predicted([1.0, 2.0, 4.0], [0, 2], total=True) == 5.0
    assert judging.predicted([1.0, 2.0, 4.0], [0, 2], total=False) == 2.5


# learning rates


@given(st.integers(rates.LOWEST - 2, rates.HIGHEST + 2))
def test_the_best_rate_of_a_valley_is_found_wherever_it_lies(bottom: int) -> None:
    best, tried = rates.best_rate(lambda rate: abs(math.log2(rate / 1e-3) - bottom))
    assert best == rates.rate_of(min(max(bottom, rates.LOWEST), rates.HIGHEST))
    assert len(tried) >= 3
    assert best in tried


def test_a_rate_at_which_training_diverges_is_never_the_best() -> None:
    best, tried = rates.best_rate(lambda rate: None if rate > 2e-3 else -rate)
    assert best == 2e-3
    assert tried[4e-3] is None


def test_groups_go_by_the_share_of_layers() -> None:
    assert [rates.group_of(n / 30) for n in (30, 29, 15, 12, 10, 5)] == [
        "all",
        "wide",
        "wide",
        "narrow",
        "narrow",
        "narrow",
    ]
    for depth in (18, 30):
        for group in rates.GROUPS:
            assert rates.group_of(rates.trial_set(group, depth).share(depth)) == group


# arms, and how long they train


def test_arms_that_train_the_same_have_one_key_and_others_have_another() -> None:
    arms = [FixedLayers((1, 2), 6), FixedLayers((2, 3), 6), all_layers(6), *schedules(Recipe())]
    arms.append(FixedModules(("layers.1.q",), (1,), 7))
    keys = [results.key_text(arm.key()) for arm in arms]
    assert len(set(keys)) == len(keys)
    assert results.key_text(FixedLayers((1, 2), 6).key()) == keys[0]
    assert [work._distinct([arms[0], arms[1], FixedLayers((1, 2), 6)])] == [[arms[0], arms[1]]]


def test_every_arm_trains_until_it_has_cost_what_all_layer_lora_does() -> None:
    recipe, units, depth = Recipe(), UnitCosts(), 12
    whole = all_layers(depth).cost(depth, 0, recipe.epoch_steps, units)
    for arm in (all_layers(depth), FixedLayers((8, 11), depth), FixedLayers((0,), depth), *schedules(recipe)):
        cost = [arm.cost(depth, step, recipe.epoch_steps, units) for step in range(400)]
        steps = steps_for(recipe, whole, cost.__getitem__)
        assert steps % recipe.every == 0
        assert steps >= recipe.steps
        assert sum(cost[:steps]) >= recipe.steps * whole or steps >= recipe.most * recipe.steps
        assert sum(cost[: steps - recipe.every]) < 1.05 * recipe.steps * whole


def test_a_schedule_costs_what_its_risen_entry_saves() -> None:
    units, depth = UnitCosts(), 12
    rising = RisingEntry(((2, 0.5),))
    costs = [rising.cost(depth, step, 4, units) for step in range(8)]
    whole = all_layers(depth).cost(depth, 0, 4, units)
    assert costs[:2] == [pytest.approx(whole)] * 2
    saved = 6 * (units.layer_backward + units.adapter_backward)
    assert costs[2:6] == [pytest.approx(whole - saved)] * 4
    assert costs[6] == pytest.approx(whole - saved - 6 * (units.layer_forward + units.adapter_forward))


# clock and average


def test_the_clock_counts_training_in_references_whatever_the_load() -> None:
    now = [0.0]
    load = [1.0]

    def take(seconds: float) -> None:
        now[0] += seconds * load[0]

    clock = TrainingClock(lambda: take(2.0), now=lambda: now[0])
    clock.go()
    take(10.0)
    clock.stop()
    assert (clock.seconds, clock.units) == (10.0, 5.0)
    load[0] = 3.0  # from here on everything takes three times as long
    clock = TrainingClock(lambda: take(2.0), now=lambda: now[0])
    take(100.0)  # an evaluation
    clock.go()
    take(10.0)
    clock.stop()
    assert (clock.seconds, clock.units) == (30.0, 5.0)


def test_the_average_is_the_polynomial_one_and_gives_values_back() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    average, gamma, expected = Average([parameter], 3.0), 3.0, 0.0
    for step in range(1, 7):
        parameter.data = torch.full((3,), float(step))
        average.update()
        expected += (1 + gamma) / (step + gamma) * (step - expected)
    with average.in_force():
        assert torch.allclose(parameter, torch.full((3,), expected))
    assert torch.equal(parameter, torch.full((3,), 6.0))
    average.drop([parameter])
    with average.in_force():
        assert torch.equal(parameter, torch.full((3,), 6.0))


def test_times_count_what_is_seen_checked_and_cached_anew_in_each_phase() -> None:
    phases = [
        {"at": 0, "seen": 1.0, "checked": 1.0, "cached": 1.0},
        {"at": 3, "seen": 0.5, "checked": 0.75, "cached": 0.25},
    ]
    # steps 0-2 whole, 3 and 4 seen, 5 checks, 6 and later from the cache
    assert judging.times(phases, 2, [0, 3, 5, 6, 8]) == [0.0, 3.0, 4.0, 4.75, 5.25]
