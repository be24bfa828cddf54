"""Seconds of a schedule's steps, phase by phase, beside a sum over single steps."""

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layercard.cost.phased import PhaseCost, earned_back, seconds_of
from layercard.cost.planned import PlannedSteps

PHASES = [PhaseCost(10, 1.0), PhaseCost(30, 0.5)]


def single_steps(phases, planned):
    """Seconds of each planned step's micro-batches, one step at a time, and how many there are."""
    for step in range(planned.begins, planned.ends):
        many = PlannedSteps(step, step + 1, planned.each, planned.epoch).micro_batches
        yield many, many * next((phase.seconds for phase in phases if step < phase.ends), phases[-1].seconds)


@pytest.mark.parametrize(
    ("begins", "ends", "mean"), [(0, 30, 2 / 3), (0, 10, 1.0), (0, 4, 1.0), (10, 30, 0.5), (9, 11, 0.75)]
)
def test_steps_take_what_their_phase_takes(begins, ends, mean):
    assert seconds_of(PHASES, PlannedSteps(begins, ends, 1)) == pytest.approx(mean)
    assert seconds_of(PHASES, PlannedSteps(begins, begins, 1)) == 0


def test_nothing_is_earned_back_before_a_rise():
    assert earned_back(PHASES, PlannedSteps(0, 30, 1), 1.0, 2.0) == 14
    assert earned_back(PHASES, PlannedSteps(0, 30, 1), 1.0, 20.0) == 50, "the last phase is thought to go on"
    assert earned_back(PHASES, PlannedSteps(0, 10, 1), 1.0, 2.0) is None
    assert earned_back(PHASES, PlannedSteps(12, 30, 1), 1.0, 2.0) == 4, "of a run that was resumed"
    assert earned_back(PHASES, PlannedSteps(0, 0, 1), 1.0, 2.0) is None


@given(
    st.lists(st.tuples(st.integers(1, 9), st.floats(0.1, 1.5)), min_size=1, max_size=4),
    st.integers(0, 12),
    st.integers(1, 4),
    st.integers(1, 11),
    st.floats(0.01, 9),
)
def test_both_are_what_single_steps_add_up_to(lengths, begins, each, epoch, spent):
    ends = accumulate(length for length, _ in lengths)
    phases = [PhaseCost(end, seconds) for end, (_, seconds) in zip(ends, lengths, strict=True)]
    planned = PlannedSteps(min(begins, phases[-1].ends), phases[-1].ends, each, epoch)
    steps = list(single_steps(phases, planned))
    many = sum(count for count, _ in steps)
    assert seconds_of(phases, planned) * many == pytest.approx(sum(seconds for _, seconds in steps))
    saved = list(accumulate(count - seconds for count, seconds in steps))
    crossing = next((n for n, so_far in enumerate(saved, 1) if so_far >= spent), None)
    found = earned_back(phases, planned, 1.0, spent)
    if (
        each == 1 and crossing is not None and abs(saved[crossing - 1] - spent) > 1e-6
    ):  # micro-batches of a step are alike
        assert found == crossing
