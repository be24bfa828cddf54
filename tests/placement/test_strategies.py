"""The strategies: their count, order and bounds for any depth, and each one's own rule."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layercard.errors import PluginError
from layercard.placement.strategies import STRATEGIES, StrategyRequest
from layercard.scores.base import LayerScores

BY_NAME = {strategy.name: strategy for strategy in STRATEGIES}
COUNTED = [strategy for strategy in STRATEGIES if strategy.name not in ("cumulative", "all")]


def scored(importance: list[float]) -> LayerScores:
    values = np.asarray(importance, dtype=np.float64)
    return LayerScores("test", values, values)


def choose(name: str, **request: object) -> tuple[int, ...]:
    return BY_NAME[name].choose(StrategyRequest(**request))  # type: ignore[arg-type]


@st.composite
def requests(draw: st.DrawFn) -> StrategyRequest:
    num_layers = draw(st.integers(1, 60))
    min_entry = draw(st.integers(0, num_layers - 1))
    finite = st.floats(-1e6, 1e6, allow_nan=False)
    return StrategyRequest(
        num_layers=num_layers,
        count=draw(st.integers(1, num_layers - min_entry)),
        scores=scored(draw(st.lists(finite, min_size=num_layers, max_size=num_layers))),
        min_entry=min_entry,
        seed=draw(st.integers(0, 1000)),
        cumulative_threshold=draw(st.floats(0.01, 1.0)),
    )


@given(request=requests())
def test_every_strategy_answers_with_ascending_candidates_named_once(request: StrategyRequest) -> None:
    for strategy in STRATEGIES:
        layers = strategy.choose(request)
        assert list(layers) == sorted(set(layers)), strategy.name
        assert layers, strategy.name
        assert all(request.min_entry <= layer < request.num_layers for layer in layers), strategy.name


@given(request=requests())
def test_every_counted_strategy_honours_the_count(request: StrategyRequest) -> None:
    for strategy in COUNTED:
        assert len(strategy.choose(request)) == request.count, strategy.name


@given(request=requests())
def test_choosing_twice_gives_the_same_layers(request: StrategyRequest) -> None:
    for strategy in STRATEGIES:
        assert strategy.choose(request) == strategy.choose(request), strategy.name


@given(num_layers=st.integers(2, 200), data=st.data())
def test_uniform_leaves_layer_0_out_until_every_layer_is_adapted(num_layers: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, num_layers - 1))
    assert 0 not in choose("uniform", num_layers=num_layers, count=count)
    assert choose("uniform", num_layers=num_layers, count=num_layers) == tuple(range(num_layers))


@given(request=requests())
def test_uniform_gaps_differ_by_at_most_one(request: StrategyRequest) -> None:
    gaps = np.diff(choose("uniform", num_layers=request.num_layers, count=request.count, min_entry=request.min_entry))
    assert gaps.size == 0 or gaps.max() - gaps.min() <= 1


def test_uniform_takes_the_centres_of_equal_bins() -> None:
    assert choose("uniform", num_layers=30, count=5) == (3, 9, 15, 21, 27)
    assert choose("uniform", num_layers=30, count=10, min_entry=10) == (
        11,
        13,
        15,
        17,
        19,
        21,
        23,
        25,
        27,
        29,
    )
    assert choose("uniform", num_layers=12, count=1) == (6,)


def test_regimes_by_score_are_the_highest_the_centred_and_the_lowest_ranks() -> None:
    importance = scored([6.0, 1.0, 5.0, 2.0, 4.0, 3.0])
    assert choose("high", num_layers=6, count=2, scores=importance) == (0, 2)
    assert choose("mid", num_layers=6, count=2, scores=importance) == (4, 5)
    assert choose("low", num_layers=6, count=2, scores=importance) == (1, 3)
    assert choose("high", num_layers=6, count=2, scores=importance, min_entry=3) == (4, 5)


def test_blocks_by_depth_lie_at_the_input_in_the_middle_and_at_the_output() -> None:
    assert choose("first", num_layers=10, count=3) == (0, 1, 2)
    assert choose("first", num_layers=10, count=3, min_entry=4) == (4, 5, 6)
    assert choose("middle", num_layers=10, count=4) == (3, 4, 5, 6)
    assert choose("last", num_layers=10, count=3) == (7, 8, 9)


def fewest_by_search(importance: np.ndarray, threshold: float) -> int:
    """Try every number of layers, with shares computed from the definition."""
    shares = (importance - importance.min()) / (importance - importance.min()).sum()
    ordered = np.sort(shares)[::-1]
    return next(k for k in range(1, len(ordered) + 1) if ordered[:k].sum() >= threshold - 1e-9)


@given(
    importance=st.lists(st.integers(-50, 50), min_size=2, max_size=30).filter(lambda v: len(set(v)) > 1),
    threshold=st.sampled_from([0.1, 0.25, 0.5, 0.75, 0.9, 1.0]),
)
def test_cumulative_is_the_fewest_layers_that_reach_the_threshold(importance: list[int], threshold: float) -> None:
    values = [float(v) for v in importance]
    layers = choose(
        "cumulative", num_layers=len(values), count=1, scores=scored(values), cumulative_threshold=threshold
    )
    assert len(layers) == fewest_by_search(np.asarray(values), threshold)
    assert min(values[layer] for layer in layers) >= max(
        (value for layer, value in enumerate(values) if layer not in layers), default=-1e9
    )


def test_cumulative_does_not_depend_on_the_offset_or_scale_of_importance() -> None:
    values = np.array([5.0, 1.0, 3.0, 0.5, 4.0])
    plain, moved = (
        choose("cumulative", num_layers=5, count=1, scores=scored(list(v)), cumulative_threshold=0.6)
        for v in (values, 7 * values - 100)
    )
    assert plain == moved == (0, 4)


def test_cumulative_gives_equal_layers_equal_shares() -> None:
    flat = scored([2.0] * 8)
    assert choose("cumulative", num_layers=8, count=1, scores=flat, cumulative_threshold=0.5) == (4, 5, 6, 7)
    assert len(choose("cumulative", num_layers=8, count=1, scores=flat, cumulative_threshold=1.0)) == 8


def test_random_depends_on_the_seed_alone() -> None:
    drawn = {choose("random", num_layers=30, count=5, seed=seed) for seed in range(20)}
    assert len(drawn) > 15


def test_reading_scores_without_asking_for_them_names_the_mistake() -> None:
    with pytest.raises(PluginError, match=r"by = 'score'"):
        _ = StrategyRequest(num_layers=4, count=1).ranked
