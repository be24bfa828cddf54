"""A schedule within the steps of a trial: its rises at the same shares, or no trial."""

import pytest

from layercard.placement.phases import compressed, phases
from layercard.placement.placement import LayerPlacement
from layercard.settings.schedule import parse_schedule

EVERY = LayerPlacement(tuple(range(12)), 12, "all", None, "given")


@pytest.mark.parametrize(
    ("schedule", "run", "steps", "begins"),
    [
        ("rising", 400, 4, (0, 1)),
        ("rising", 400, 64, (0, 16)),
        ("0.25:0.33, 0.5:0.67", 400, 12, (0, 3, 6)),
        ("0.25:0.33, 0.5:0.67", 400, 3, (0, 1, 2)),
        ("0.25:0.33, 0.5:0.67", 400, 2, None),
        ("0.1:0.5", 400, 4, None),
        ("0.9:0.5", 400, 4, None),
        ("0.9:0.5", 400, 8, (0, 7)),
    ],
)
def test_rises_come_at_the_same_shares_and_every_phase_has_a_step(schedule, run, steps, begins):
    planned = phases(EVERY, parse_schedule(schedule), run)
    assert compressed(planned, steps) == begins


def test_a_warm_up_that_moves_a_rise_moves_it_in_the_trial_too():
    planned = phases(EVERY, parse_schedule("rising"), 400, warm_up=200)
    assert compressed(planned, 10) == (0, 5)


def test_without_a_rise_there_is_one_phase():
    assert compressed(phases(EVERY, (), 400), 3) == (0,)
