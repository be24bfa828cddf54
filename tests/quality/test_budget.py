"""How long a trial a run can pay for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layercard.quality.budget import (
    FEWEST_EXAMPLES,
    FEWEST_UPDATES,
    MOST_EXAMPLES,
    MOST_UPDATES,
    TrialCosts,
    least_units,
    plan_trial,
)

costs = st.builds(
    TrialCosts,
    steps_each=st.integers(1, 16),
    placed=st.floats(0.2, 1.0),
    forward=st.floats(0.25, 0.5),
    batch_size=st.integers(1, 64),
)


@given(st.floats(0, 2000), costs, st.integers(0, 2))
def test_a_plan_never_costs_more_than_the_units_and_holds_its_limits(units, cost, retries):
    plan = plan_trial(units, cost, retries=retries)
    if plan is None:
        assert units < least_units(cost) * 1.5 + 1
        return
    assert plan.units <= units + 1e-6
    assert FEWEST_UPDATES <= plan.updates <= MOST_UPDATES
    assert FEWEST_EXAMPLES <= plan.examples <= MOST_EXAMPLES
    assert plan.retries <= retries


@given(costs)
def test_the_least_that_is_named_is_enough(cost):
    assert plan_trial(least_units(cost) * 1.5 + 1, cost) is not None
    assert plan_trial(least_units(cost) - 0.01, cost) is None


def test_more_units_never_make_a_shorter_trial():
    cost = TrialCosts(steps_each=1, placed=0.6, forward=0.45, batch_size=8)
    plans = [plan_trial(units, cost) for units in (8, 15, 30, 100, 300)]
    assert [plan.examples for plan in plans] == sorted(plan.examples for plan in plans)
    assert [plan.second_rate for plan in plans] == [False, True, True, True, True]
    assert plans[-1].updates == MOST_UPDATES


@pytest.mark.parametrize("steps_each", [1, 8])
def test_five_hundred_steps_pay_for_a_trial(steps_each):
    cost = TrialCosts(steps_each=steps_each, placed=0.6, forward=0.45, batch_size=8)
    plan = plan_trial(0.03 * 500 * steps_each - 1.6, cost)
    assert plan.updates >= 4
