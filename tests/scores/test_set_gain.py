"""Set gain and coupling equal the formulas of layer-card.txt on explicit features, Hessian and all, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layercard.placement.set_gain import forward
from layercard.placement.strategies import StrategyRequest
from layercard.probing.statistics import Array
from layercard.scores.base import LayerScores
from layercard.scores.coupling import coupling
from layercard.scores.set_gain import SetGain


@dataclass(frozen=True)
class Explicit:
    """The quadratic model itself: each layer's features (n, p_ℓ), g and H over the parameters of a set."""

    features: list[Array]
    damping: float

    @property
    def examples(self) -> int:
        return len(self.features[0])

    def gradient(self, layers: Sequence[int]) -> Array:
        return np.concatenate([self.features[layer].mean(0) for layer in layers])

    def hessian(self, layers: Sequence[int]) -> Array:
        phi = np.concatenate([self.features[layer] for layer in layers], axis=1)
        return phi.T @ phi / self.examples + self.damping / self.examples * np.eye(phi.shape[1])

    def gain(self, layers: Sequence[int]) -> float:
        """½ gᵀH⁻¹g, layer-card.txt eq. (3)."""
        g = self.gradient(layers)
        return float(0.5 * g @ np.linalg.solve(self.hessian(layers), g))

    def normalised(self, layers: Sequence[int]) -> tuple[Array, list[slice]]:
        """D^-½ H D^-½ over a set, and where each layer's block lies."""
        h, sizes = self.hessian(layers), [self.features[layer].shape[1] for layer in layers]
        ends = np.cumsum(sizes)
        blocks = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        whiten = np.zeros_like(h)
        for block in blocks:
            values, vectors = np.linalg.eigh(h[block, block])
            whiten[block, block] = vectors / np.sqrt(values) @ vectors.T
        return whiten @ h @ whiten, blocks

    def rho(self, layers: Sequence[int]) -> float:
        whitened, _ = self.normalised(layers)
        return float(np.linalg.norm(whitened - np.eye(len(whitened)), ord=2))

    def kappa(self, one: int, other: int) -> float:
        whitened, (first, second) = self.normalised([one, other])
        return float(np.linalg.norm(whitened[first, second], ord=2) ** 2)


def explicit(seed: int, layers: int = 5, examples: int = 6) -> tuple[Explicit, SetGain]:
    """Features of several widths with something in common, and the gain by their inner products alone."""
    draw = np.random.default_rng(seed)
    shared = draw.normal(size=(examples, 3)) + draw.normal(size=(1, 3))
    features = []
    for layer in range(layers):
        own = draw.normal(size=(examples, 1 + layer))
        raw = np.concatenate([own, shared @ draw.normal(size=(3, 2))], axis=1)
        features.append(raw * np.sqrt(examples / (raw**2).sum()))  # a mean diagonal of 1, as the gain scales them
    scale = draw.uniform(0.1, 30.0, size=layers)  # which it takes out again
    grams = np.stack([s * f @ f.T for s, f in zip(scale, features, strict=True)])
    sets = SetGain.of_grams(grams, range(layers))
    return Explicit(features, sets.damping), sets


def subsets(layers: int) -> list[list[int]]:
    return [[i for i in range(layers) if mask >> i & 1] for mask in range(1, 2**layers)]


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30)
def test_the_gain_of_every_set_is_the_papers(seed: int) -> None:
    model, sets = explicit(seed)
    for layers in subsets(5):
        assert sets.of(layers) == pytest.approx(model.gain(layers), rel=1e-9)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30)
def test_coupling_is_the_papers_and_bounds_the_gain(seed: int) -> None:
    model, sets = explicit(seed)
    for layers in ([0], [1, 3], [0, 2, 4], list(range(5))):
        found = coupling(sets, layers)
        assert found.rho == pytest.approx(model.rho(layers), rel=1e-4, abs=1e-9)
        assert found.added_up / (1 + found.rho * (1 + 1e-4)) <= found.gain + 1e-12  # eq. (4)
        for i, one in enumerate(layers):
            for j, other in enumerate(layers):
                expected = 0.0 if i == j else model.kappa(one, other)
                assert found.kappa[i, j] == pytest.approx(expected, rel=1e-8, abs=1e-12)
                assert 0.0 <= found.kappa[i, j] < 1.0
        first, second, strongest = found.strongest
        assert strongest == found.kappa.max() and first <= second
        assert found.to_dict()["layers"] == layers


@given(seed=st.integers(0, 10_000))
def test_a_larger_set_gains_no_less_and_never_a_half(seed: int) -> None:
    _, sets = explicit(seed, layers=4)
    for layers in subsets(4):
        for more in range(4):
            assert sets.of(layers) <= sets.of(sorted({*layers, more})) + 1e-12
        assert 0.0 <= sets.of(layers) < 0.5


@given(seed=st.integers(0, 10_000), copies=st.booleans())
def test_forward_selection_takes_the_best_layer_each_time(seed: int, copies: bool) -> None:
    _, sets = explicit(seed, layers=9, examples=5)
    if copies:  # bounds of equal layers are equal, and those of a layer that was taken are of no use
        sets = SetGain(np.concatenate([sets.kernels[:5], sets.kernels[:4], sets.kernels[:1] * 0.0]), sets.damping)
    held, left = [2], [layer for layer in range(len(sets.kernels)) if layer != 2]
    for layer, worth in sets.grown([2], left):
        best = max(sets.of([*held, other]) for other in left)
        assert worth == pytest.approx(best, abs=1e-10)
        assert sets.of([*held, layer]) == pytest.approx(worth, abs=1e-10)
        held.append(layer)
        left.remove(layer)
    assert left == []


def test_layers_that_learn_the_same_count_once() -> None:
    same, other = np.repeat([1.0, 0.0], [5, 3])[:, None], np.repeat([0.0, 1.0], [5, 3])[:, None]
    grams = np.stack([f @ f.T for f in (same, same, other)])
    sets = SetGain.of_grams(grams, range(3))
    alone = [sets.of([layer]) for layer in range(3)]
    assert alone[0] == alone[1] > alone[2]
    assert sets.of([0, 2]) > sets.of([0, 1])
    scores = LayerScores("set_gain", np.array(alone), np.array(alone), sets=sets)
    assert sorted(forward(StrategyRequest(3, 2, scores))) == [1, 2]
    assert sorted(forward(StrategyRequest(3, 2, LayerScores("set_gain", np.array(alone), np.array(alone))))) == [0, 1]


def test_a_layer_without_gradients_gains_nothing_and_others_are_not_read() -> None:
    grams: Any = np.stack([np.full((4, 4), np.nan), np.zeros((4, 4)), np.eye(4) + 1.0])
    sets = SetGain.of_grams(grams, (1, 2))
    assert sets.damping == 2.0
    assert sets.of([1]) == 0.0
    assert sets.of([1, 2]) == sets.of([2]) > 0.0
    assert [layer for layer, _ in islice(sets.grown((), (1, 2)), 2)] == [2, 1]
    assert coupling(sets, (1, 2)).rho == 0.0
