"""The share of the gain kept, its interval, and what a short trial says of the end of a run."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layercard.quality.calibration import (
    LOG_FACTORS,
    REFERENCE_RATE,
    STEPS,
    at_end,
    interval_at_end,
    is_adam_like,
    log_factor,
)
from layercard.quality.share import mean_finite, share_kept

BEFORE, ALL, PLACED = [3.0, 4.0, 5.0, 4.0] * 4, [2.0, 2.5, 3.0, 2.5] * 4, [2.5, 3.0, 4.0, 3.5] * 4


def test_it_is_the_ratio_of_the_mean_reductions():
    by_hand = (np.mean(BEFORE) - np.mean(PLACED)) / (np.mean(BEFORE) - np.mean(ALL))
    found = share_kept(BEFORE, ALL, PLACED)
    assert found.value == pytest.approx(by_hand)
    assert found.low < found.value < found.high


def test_all_of_it_none_of_it_and_more_than_all():
    assert share_kept(BEFORE, ALL, ALL).value == 1.0
    assert share_kept(BEFORE, ALL, BEFORE).value == 0.0
    assert share_kept(BEFORE, PLACED, ALL).value > 1
    assert share_kept(BEFORE, ALL, [x + 1 for x in BEFORE]).value < 0
    exact = share_kept(BEFORE, ALL, ALL)
    assert (exact.low, exact.high) == (1.0, 1.0)


losses = st.lists(st.tuples(*[st.floats(0.1, 9.0)] * 3), min_size=4, max_size=30)


@given(losses, st.randoms(use_true_random=False))
def test_the_order_of_examples_does_not_matter_and_the_value_lies_in_its_interval(rows, random):
    found = share_kept(*zip(*rows, strict=True), resamples=200)
    shuffled = list(rows)
    random.shuffle(shuffled)
    again = share_kept(*zip(*shuffled, strict=True), resamples=200)
    assert (found.value is None) == (found.reason is not None) == (found.low is None)
    if found.value is not None and again.value is not None:
        assert again.value == pytest.approx(found.value)
        assert found.low <= found.high


@pytest.mark.parametrize(
    ("before", "all_layers", "placed", "reason"),
    [
        (BEFORE, BEFORE, ALL, "did not lower"),
        (BEFORE, [x + 1 for x in BEFORE], ALL, "did not lower"),
        ([3.0, 3.0, 3.0, 3.0], [1.0, 4.5, 2.0, 4.0], [2.0] * 4, "cannot tell from nothing"),
        (BEFORE, [math.nan, *ALL[1:]], PLACED, "All-layer LoRA diverged"),
        ([math.nan] * 16, ALL, PLACED, "finite loss before"),
    ],
)
def test_without_a_gain_there_is_no_share_and_the_reason_says_so(before, all_layers, placed, reason):
    found = share_kept(before, all_layers, placed)
    assert found.value is None
    assert reason in found.reason
    assert not found.below(0.9)


def test_a_placed_model_that_diverged_has_no_share_and_is_below_every_threshold():
    found = share_kept(BEFORE, ALL, [math.inf, *PLACED[1:]])
    assert found.value is None
    assert found.below(0.0)


def test_examples_without_a_label_are_left_out():
    nan = [math.nan]
    assert share_kept(BEFORE + nan, ALL + nan, PLACED + nan) == share_kept(BEFORE, ALL, PLACED)
    assert mean_finite([1.0, math.nan, 3.0]) == 2.0
    assert mean_finite(nan) is None


@pytest.mark.parametrize("examples", [16, 48])
def test_the_interval_holds_the_share_of_all_examples_about_as_often_as_it_says(examples):
    generator = np.random.default_rng(5)
    held = 0
    for trial in range(300):
        gain = generator.gamma(4.0, 0.25, examples)  # skewed, as gains over examples are
        kept = 0.8 * gain + generator.normal(0, 0.2, examples)
        found = share_kept(np.full(examples, 5.0), 5.0 - gain, 5.0 - kept, resamples=400, seed=trial)
        held += found.low <= 0.8 <= found.high
    assert 0.87 <= held / 300 <= 0.99


def test_it_draws_nothing_from_the_global_random_state():
    state = np.random.get_state()[1].copy()
    assert share_kept(BEFORE, ALL, PLACED) == share_kept(BEFORE, ALL, PLACED)
    assert (np.random.get_state()[1] == state).all()


rates = st.one_of(st.none(), st.floats(1e-7, 1e-1))


@given(st.floats(-1, 2), st.floats(-1, 2), st.integers(1, 500), rates)
def test_the_share_at_the_end_keeps_the_order_and_stays_within_none_and_all(one, other, updates, rate):
    first, second = at_end(one, updates, rate), at_end(other, updates, rate)
    assert 0 < first < 1
    assert first <= second if one <= other else second <= first
    assert first >= min(one, 0.98) - 1e-9


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 500), rates)
def test_the_interval_at_the_end_holds_the_share_at_the_end(one, other, updates, rate):
    low, high = interval_at_end(min(one, other), max(one, other), updates, rate)
    for share in (one, other, (one + other) / 2):
        assert low < at_end(share, updates, rate) < high


def test_odds_are_multiplied_by_the_factor_of_that_distance():
    for steps, factor in zip(STEPS, LOG_FACTORS, strict=True):
        share = at_end(0.5, steps, REFERENCE_RATE)
        assert math.log(share / (1 - share)) == pytest.approx(factor)
    between = [log_factor(n, REFERENCE_RATE) for n in range(1, 300)]
    assert between == sorted(between, reverse=True)


def test_steps_count_by_their_learning_rate():
    assert log_factor(4, 5 * REFERENCE_RATE) == pytest.approx(log_factor(20, REFERENCE_RATE))
    assert log_factor(1, 1e-9) == LOG_FACTORS[0]


def test_an_optimizer_that_is_not_adam_like_gets_the_smallest_factor():
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    assert is_adam_like(torch.optim.AdamW(parameters))
    assert not is_adam_like(torch.optim.SGD(parameters, lr=0.1))
    assert log_factor(4, None) == LOG_FACTORS[-1]


@pytest.mark.parametrize(
    ("in_trial", "updates", "rate", "at_the_end"),
    [
        (0.125, 5, 2e-4, 0.69),
        (0.385, 4, 2e-4, 0.94),
        (0.41, 4, 1e-3, 0.75),
        (0.52, 8, 1e-3, 0.75),
        (0.60, 16, 2e-4, 0.86),
    ],
)
def test_measured_runs_are_predicted(in_trial, updates, rate, at_the_end):
    """SmolLM2-135M on E2E and GSM8K: a third, the last five and the upper half of 30 layers (benchmarks/guard)."""
    low, high = interval_at_end(in_trial, in_trial, updates, rate)
    assert low - 0.01 < at_the_end < high + 0.01
