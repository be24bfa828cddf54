"""Rank correlations against independent oracles, and the depth-only null against rankings that share depth alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from layercard.cards.correlation import SIGNIFICANCE, likeness, partial_spearman, spearman

DEPTHS = st.integers(5, 40)


def follows_depth(scores: np.ndarray) -> bool:
    """Whether the ranking is exactly that of depth, so that nothing is left given depth."""
    return bool(np.all(np.diff(scores) > 0) or np.all(np.diff(scores) < 0))


def drawn(layers: int, seed: int, *, trend: float = -6.0, smooth: float = 0.0) -> np.ndarray:
    """Scores that fall with depth, with independent or autocorrelated noise around the trend."""
    generator = np.random.default_rng(seed)
    noise = np.empty(layers)
    noise[0] = generator.normal()
    for i in range(1, layers):
        noise[i] = smooth * noise[i - 1] + math.sqrt(1 - smooth**2) * generator.normal()
    return trend * np.arange(layers) / layers + noise


@settings(max_examples=50, deadline=None)
@given(layers=DEPTHS, seed=st.integers(0, 10**6), ties=st.booleans())
def test_spearman_is_scipys(layers: int, seed: int, ties: bool) -> None:
    one, other = (np.round(drawn(layers, seed + i)) if ties else drawn(layers, seed + i) for i in (0, 1))
    assert spearman(one, other) == pytest.approx(stats.spearmanr(one, other).statistic)


@settings(max_examples=50, deadline=None)
@given(layers=DEPTHS, seed=st.integers(0, 10**6))
def test_partial_spearman_is_the_correlation_of_residuals_of_rank_regression(layers: int, seed: int) -> None:
    one, other = drawn(layers, seed), drawn(layers, seed + 1)
    assume(not follows_depth(one) and not follows_depth(other))
    depth = stats.rankdata(np.arange(layers))
    residuals = []
    for scores in (one, other):
        ranked = stats.rankdata(scores)
        line = stats.linregress(depth, ranked)
        residuals.append(ranked - line.slope * depth - line.intercept)
    assert partial_spearman(one, other) == pytest.approx(stats.pearsonr(*residuals).statistic)


@settings(max_examples=50, deadline=None)
@given(layers=DEPTHS, seed=st.integers(0, 10**6))
def test_partial_spearman_is_the_textbook_formula(layers: int, seed: int) -> None:
    one, other, depth = drawn(layers, seed), drawn(layers, seed + 1), np.arange(layers)
    assume(not follows_depth(one) and not follows_depth(other))
    ab, az, bz = (stats.spearmanr(*pair).statistic for pair in ((one, other), (one, depth), (other, depth)))
    expected = (ab - az * bz) / math.sqrt((1 - az**2) * (1 - bz**2))
    assert partial_spearman(one, other) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(layers=st.integers(8, 40), seed=st.integers(0, 10**6))
def test_a_ranking_is_like_itself_and_beats_depth(layers: int, seed: int) -> None:
    scores = drawn(layers, seed)
    assume(not follows_depth(scores))
    same = likeness(scores, scores)
    assert same.spearman == pytest.approx(1.0)
    assert same.partial_spearman == pytest.approx(1.0)
    assert same.beats_depth


@settings(max_examples=50, deadline=None)
@given(layers=DEPTHS, seed=st.integers(0, 10**6))
def test_order_and_scale_do_not_matter(layers: int, seed: int) -> None:
    one, other = drawn(layers, seed), drawn(layers, seed + 1)
    assert likeness(one, other) == likeness(other, one) == likeness(3.0 * one + 7.0, np.exp(other))


def test_opposite_rankings_are_opposite() -> None:
    scores = drawn(20, 3)
    assert likeness(scores, -scores).spearman == pytest.approx(-1.0)
    assert not likeness(scores, -scores).beats_depth


def test_depth_itself_is_like_everything_and_shows_nothing() -> None:
    falling = -np.arange(30.0)
    found = likeness(falling, falling)
    assert found.spearman == pytest.approx(1.0)
    assert math.isnan(found.partial_spearman)
    assert not found.beats_depth


@pytest.mark.parametrize("layers", [2, 3, 12])
def test_a_constant_score_is_like_nothing(layers: int) -> None:
    found = likeness(np.ones(layers), np.arange(float(layers)))
    assert math.isnan(found.spearman)
    assert not found.beats_depth


def test_different_depths_are_refused() -> None:
    with pytest.raises(ValueError, match="same layers"):
        likeness(np.ones(3), np.ones(4))


@pytest.mark.parametrize("layers", [12, 24, 36])
@pytest.mark.parametrize("smooth", [0.0, 0.8])
def test_rankings_that_share_depth_alone_seldom_pass(layers: int, smooth: float) -> None:
    pairs = [likeness(drawn(layers, 2 * i, smooth=smooth), drawn(layers, 2 * i + 1, smooth=smooth)) for i in range(150)]
    assert np.mean([pair.beats_depth for pair in pairs]) < 2.5 * SIGNIFICANCE
    assert np.mean([pair.spearman for pair in pairs]) > 0.7  # through depth alone


@pytest.mark.parametrize("layers", [12, 24, 36])
def test_rankings_that_share_more_than_depth_pass(layers: int) -> None:
    passed = 0
    for i in range(50):
        shared = drawn(layers, i)
        noise = [0.25 * np.random.default_rng((i, j)).normal(size=layers) for j in (0, 1)]
        passed += likeness(shared + noise[0], shared + noise[1]).beats_depth
    assert passed >= 40
