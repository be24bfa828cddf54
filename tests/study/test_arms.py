from __future__ import annotations

import numpy as np
import pytest

from layercard import PlacementSettings, plugins
from layercard.placement.choose import choose_placement
from layercard.study.arms import DEPTH, make_arms


@pytest.mark.parametrize("depth", [3, 6, 18, 30])
def test_the_regimes_share_out_all_layers(depth: int) -> None:
    arms = {arm.name: arm for arm in make_arms(np.random.default_rng(0).normal(size=depth))}
    regimes = [arms[name].layers for name in ("high", "mid", "low")]
    assert sorted(layer for layers in regimes for layer in layers) == list(range(depth))
    assert arms["all_layers"].layers == tuple(range(depth))


@pytest.mark.parametrize("depth", [4, 6, 18, 30])
@pytest.mark.parametrize("name", DEPTH)
def test_strategies_by_depth_are_what_auto_does_without_cards(depth: int, name: str) -> None:
    arms = {arm.name: arm for arm in make_arms(np.arange(depth, dtype=float))}
    settings = PlacementSettings.from_user("auto", prefer=DEPTH[name][0])
    chosen = choose_placement(settings, depth, strategies=plugins.strategies(plugins.manager()))
    assert arms[name].layers == chosen.layers
