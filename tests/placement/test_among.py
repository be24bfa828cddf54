"""Choosing among the layers that have adapters is choosing in a model of those layers alone, renumbered."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from layercard import LayerPlacement, PlacementSettings
from layercard.anatomy.words import how_many
from layercard.errors import PlacementError, ProbeError, SettingsError
from layercard.placement.choose import choose_placement
from layercard.placement.strategies import StrategyRequest
from layercard.plugins import build_manager, strategies
from layercard.quality.widening import wider
from layercard.scores.base import LayerScores

KNOWN = strategies(build_manager(entry_points=False))
BUILT_IN = ["high", "mid", "low", "cumulative", "first", "middle", "last", "uniform", "random"]


@st.composite
def models(draw: st.DrawFn) -> tuple[int, tuple[int, ...]]:
    """A depth, and the layers of it that have adapters."""
    depth = draw(st.integers(1, 60))
    return depth, tuple(sorted(draw(st.sets(st.integers(0, depth - 1), min_size=1))))


def scores(depth: int, layers: tuple[int, ...], seed: int) -> tuple[LayerScores, LayerScores]:
    """Scores of a model whose other layers have none, and of one that consists of those layers."""
    drawn = np.random.default_rng(seed).normal(size=len(layers))
    sparse = np.full(depth, np.nan)
    sparse[list(layers)] = drawn
    return LayerScores("resnorm", sparse, sparse), LayerScores("resnorm", drawn, drawn)


def both(depth: int, layers: tuple[int, ...], seed: int = 0, **values: Any) -> tuple[LayerPlacement, tuple[int, ...]]:
    """The choice among `layers`, and that of the compact model in the other's numbers."""
    sparse, compact = scores(depth, layers, seed)
    given_score = {"score": "resnorm"} if values.get("strategy") in BUILT_IN[:4] else {}
    settings = PlacementSettings.from_user("auto", **values, **given_score)
    found = choose_placement(settings, depth, strategies=KNOWN, scores={"resnorm": sparse}, adaptable=layers)
    lower = sum(layer < settings.min_entry for layer in layers)
    same = PlacementSettings.from_user("auto", **(values | {"min_entry": lower}), **given_score)
    alone = choose_placement(same, len(layers), strategies=KNOWN, scores={"resnorm": compact})
    return found, tuple(layers[place] for place in alone.layers)


@given(model=models(), name=st.sampled_from(BUILT_IN), seed=st.integers(0, 99), share=st.floats(0.01, 1.0))
def test_strategies(model: tuple[int, tuple[int, ...]], name: str, seed: int, share: float) -> None:
    depth, layers = model
    assume(name != "uniform" or layers[0] == 0)  # the compact model's first layer is kept out for being layer 0
    size = {} if name == "cumulative" else {"fraction": share}
    found, alone = both(depth, layers, seed, strategy=name, random_seed=seed, **size)
    assert found.layers == alone
    assert how_many(len(alone), depth, layers) in found.reason


@given(model=models(), data=st.data())
def test_auto_and_min_entry(model: tuple[int, tuple[int, ...]], data: st.DataObject) -> None:
    depth, layers = model
    prefer = data.draw(st.sampled_from(["quality", "balanced", "speed"]))
    min_entry = data.draw(st.integers(0, layers[-1]))
    assume(prefer != "quality" or layers[0] == 0)
    found, alone = both(depth, layers, prefer=prefer, min_entry=min_entry)
    assert found.layers == alone
    assert found.entry >= min_entry


@given(model=models(), data=st.data())
def test_uniform_is_as_even_as_can_be(model: tuple[int, tuple[int, ...]], data: st.DataObject) -> None:
    depth, layers = model
    count = data.draw(st.integers(1, len(layers)))
    request = StrategyRequest(depth, count, adaptable=layers)
    places = [layers.index(layer) for layer in KNOWN["uniform"].choose(request)]
    assert len(places) == count
    if layers[0] == 0 and count < len(layers):
        assert 0 not in places
    gaps = np.diff(places)
    assert gaps.size == 0 or gaps.max() - gaps.min() <= 1


@given(model=models())
def test_a_strategy_without_adaptable_layers_sees_what_it_always_saw(model: tuple[int, tuple[int, ...]]) -> None:
    depth, layers = model
    every = StrategyRequest(depth, 1)
    assert every.candidates == range(depth)
    assert list(StrategyRequest(depth, 1, adaptable=layers).candidates) == list(layers)


@given(model=models(), data=st.data())
def test_widening_stays_among_them_and_ends_with_all(model: tuple[int, tuple[int, ...]], data: st.DataObject) -> None:
    depth, layers = model
    wide: tuple[int, ...] = (data.draw(st.sampled_from(layers)),)
    for _ in range(depth):
        before = wide
        wide = wider(wide, depth, adaptable=layers)
        assert set(before) <= set(wide) <= set(layers)
    assert wide == layers


def test_all_layers_with_adapters_are_all_layers() -> None:
    settings = PlacementSettings.from_user("last", fraction=1.0)
    found = choose_placement(settings, 8, strategies=KNOWN, adaptable=(3, 7))
    assert (found.is_all, found.every_layer, found.num_layers) == (True, (3, 7), 8)
    again = LayerPlacement.from_dict(found.to_dict())
    assert again == found
    assert choose_placement(settings, 2, strategies=KNOWN, adaptable=(0, 1)).adaptable is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"lora_layers": [2, 3]},
            r"layer 2 of 0–7, where the model has no adapters; it has them in layers 3, 7 of 0–7",
        ),
        ({"lora_layers": "last", "min_entry": 8}, r"`min_entry` is 8.*layers 3, 7 of 0–7 have adapters"),
        ({"lora_layers": "last", "num_layers": 3}, r"the model has 8, and 2 of them have adapters.*at most 2"),
    ],
)
def test_what_does_not_fit_names_the_layers_that_do(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        choose_placement(PlacementSettings.from_user(**values), 8, strategies=KNOWN, adaptable=(3, 7))


def test_a_saved_placement_must_fit_the_layers_that_have_adapters(tmp_path: Any) -> None:
    path = tmp_path / "placement.json"
    choose_placement(PlacementSettings.from_user("last"), 8, strategies=KNOWN).save(path)
    with pytest.raises(PlacementError, match=r"layers 5–6 of 0–7, where the model has no adapters"):
        choose_placement(PlacementSettings.from_user(str(path)), 8, strategies=KNOWN, adaptable=(3, 7))


def test_a_layer_whose_adapters_the_probe_cannot_read_has_no_score() -> None:
    sparse, _ = scores(8, (3,), 0)
    with pytest.raises(ProbeError, match=r"`resnorm` is undefined for layer 7 of 0–7"):
        choose_placement(
            PlacementSettings.from_user("high"), 8, strategies=KNOWN, scores={"resnorm": sparse}, adaptable=(3, 7)
        )
