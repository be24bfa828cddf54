"""The predicted step ratio: its bounds, its direction, and the ratios measured on real trainers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layercard.cost.predict import UnitCosts, predict_step, predict_step_ratio, step_cost

LAST_5 = range(25, 30)


@given(num_layers=st.integers(1, 80), checkpointing=st.booleans())
def test_all_layers_cost_what_all_layers_cost(num_layers: int, checkpointing: bool) -> None:
    assert predict_step_ratio(num_layers, range(num_layers), checkpointing=checkpointing) == pytest.approx(1.0)


@given(num_layers=st.integers(2, 80), checkpointing=st.booleans(), data=st.data())
def test_fewer_layers_and_a_higher_entry_never_cost_more(
    num_layers: int, checkpointing: bool, data: st.DataObject
) -> None:
    layers = sorted(data.draw(st.sets(st.integers(0, num_layers - 1), min_size=2)))
    ratio = predict_step_ratio(num_layers, layers, checkpointing=checkpointing)
    assert 0 < predict_step_ratio(num_layers, layers[1:], checkpointing=checkpointing) < ratio <= 1.0
    cached = predict_step_ratio(num_layers, layers, checkpointing=checkpointing, prefix_cached=True)
    as_hosts_do = predict_step_ratio(num_layers, layers, checkpointing=checkpointing, gradient_entry=False)
    assert cached <= ratio <= as_hosts_do <= 1.0


@pytest.mark.parametrize(
    ("setup", "low", "high"),
    [({"gradient_entry": False}, 1.25, 1.35), ({}, 2.5, 3.1), ({"prefix_cached": True}, 5.0, 6.0)],
)
def test_last_5_of_30_under_checkpointing_is_near_what_was_measured(
    setup: dict[str, bool], low: float, high: float
) -> None:
    assert low < predict_step(30, LAST_5, checkpointing=True, **setup).speedup < high


def test_a_head_as_costly_as_its_parameters_gives_the_ratio_measured_on_smollm2() -> None:
    units = UnitCosts.with_head(head_parameters=49152 * 576, layer_parameters=3_540_096)
    ratio = predict_step_ratio(30, range(11, 30, 2), checkpointing=False, units=units)
    assert ratio == pytest.approx(0.72, abs=0.02)


def test_the_parts_of_a_step_add_up_by_hand() -> None:
    units = UnitCosts(
        layer_forward=1,
        layer_backward=2,
        adapter_forward=0.1,
        adapter_backward=0.3,
        head_forward=4,
        head_backward=5,
    )
    cost = step_cost(10, [6, 8], checkpointing=True, units=units)
    assert (cost.forward, cost.recompute, cost.backward, cost.head) == (10, 4, 8, 9)
    assert cost.adapters == pytest.approx(2 * 0.5)
    assert cost.total == pytest.approx(32)
    assert step_cost(10, [6, 8], checkpointing=True, units=units, prefix_cached=True).forward == 4


def test_checkpointing_may_be_off_for_the_placed_step_alone() -> None:
    kept = predict_step(30, LAST_5, checkpointing=True)
    off = predict_step(30, LAST_5, checkpointing=True, recompute_above_entry=False)
    assert off.placed.recompute == 0
    assert off.all_layer == kept.all_layer
    assert off.speedup > kept.speedup
