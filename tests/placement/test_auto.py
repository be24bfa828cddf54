"""`auto` without Layer Cards: how many layers, where, and that it says its quality is unproven."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layercard import LayerPlacement, PlacementSettings
from layercard.placement.choose import choose_placement
from layercard.plugins import build_manager, strategies

KNOWN = strategies(build_manager(entry_points=False))
PREFER = ("quality", "balanced", "speed")


def auto(depth: int, **values: Any) -> LayerPlacement:
    return choose_placement(PlacementSettings.from_user("auto", **values), depth, strategies=KNOWN)


def test_thirty_layers() -> None:
    assert auto(30, prefer="quality").layers == tuple(range(1, 30, 2))
    assert auto(30).layers == tuple(range(11, 30, 2))
    assert auto(30, prefer="speed").layers == tuple(range(22, 30))


@pytest.mark.parametrize("prefer", PREFER)
def test_it_says_that_quality_is_unproven(prefer: str) -> None:
    placement = auto(24, prefer=prefer)
    assert "unproven" in placement.reason
    assert placement.evidence == "none"


@given(num_layers=st.integers(1, 120))
def test_shares_are_at_least_a_half_a_third_and_a_quarter(num_layers: int) -> None:
    for prefer, share in zip(PREFER, (2, 3, 4), strict=True):
        assert len(auto(num_layers, prefer=prefer).layers) >= num_layers / share


@given(num_layers=st.integers(3, 120))
def test_balanced_stays_in_the_upper_two_thirds(num_layers: int) -> None:
    assert auto(num_layers).entry >= num_layers // 3


@given(num_layers=st.integers(1, 60), data=st.data())
def test_min_entry_and_a_number_that_was_asked_for_are_honoured(num_layers: int, data: st.DataObject) -> None:
    min_entry = data.draw(st.integers(0, num_layers - 1))
    count = data.draw(st.integers(1, num_layers - min_entry))
    for prefer in PREFER:
        placement = auto(num_layers, prefer=prefer, min_entry=min_entry, num_layers=count)
        assert placement.entry >= min_entry
        assert len(placement.layers) == count
        assert auto(num_layers, prefer=prefer, min_entry=min_entry).entry >= min_entry
