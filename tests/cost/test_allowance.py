"""How much timing may cost."""

import pytest

from layercard.cost.allowance import Allowance


@pytest.mark.parametrize("speedup", [1.0, 1.5, 3.0])
def test_the_allowance_grows_with_the_run_and_not_with_the_speedup(speedup):
    held = [Allowance(steps, 0.02, speedup).holds(split=False) for steps in (0, 100, 399, 400, 10_000)]
    assert held == [False, False, False, True, True]
    assert Allowance(10_000, 0.02, speedup).holds(split=True)
    assert Allowance(400, 0.02, speedup).too_short() is None


@pytest.mark.parametrize("steps", [1, 37, 399])
def test_the_message_names_a_length_that_is_enough(steps):
    reason = Allowance(steps, 0.02, 1.7).too_short()
    enough = int(reason.split("; ")[1].split(" ")[0])
    assert Allowance(enough, 0.02, 1.7).too_short() is None
    assert Allowance(enough - 1, 0.02, 1.7).too_short() is not None


def test_without_a_budget_nothing_is_promised():
    assert "; " not in Allowance(10**6, 0.0, 2.0).too_short()


def test_the_budget_to_raise_to_is_enough_and_none_is_named_where_none_is():
    reason = Allowance(37, 0.02, 1.7).too_short()
    named = float(reason.split("`measure_budget` to ")[1].split(" ")[0])
    assert Allowance(37, named, 1.7).too_short() is None
    assert Allowance(37, named - 0.01, 1.7).too_short() is not None
    assert "No `measure_budget` is enough" in Allowance(15, 0.02, 1.7).too_short()
