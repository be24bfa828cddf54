"""How alike two rankings of layers are: Spearman correlation, the partial one given depth, and the depth-only null.

Resnorm falls with depth in almost every model, so any two data sets rank its layers alike through depth alone. What
tells two data sets apart, or shows them alike, is how their ranks depart from depth: the residuals of ranks after a
straight line in depth's ranks. The partial Spearman correlation is the Pearson correlation of these residuals.

The null: residuals that know nothing of each other correlate too, the more so the smoother they run along depth and
the fewer layers there are. So a partial correlation is held against those of random-phase surrogates of the residuals
(Theiler et al. 1992, Physica D 58), which keep how smooth they are and nothing else. Where they were drawn independently
around one depth trend (4 to 36 layers; white, autocorrelated up to 0.8, or U-shaped), at most 10% passed at the 5% level,
where a plain permutation passed up to 13%, and ρ ≥ 0.9 alone up to 97% (U-shaped, 36 layers). This is layercard's
completion of layer-card.txt, whose Algorithm 1 asks for ρ alone. It sets depth aside and nothing else: what a model's
weights do to all data alike, such as massive activations of single layers, still makes two data sets alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from layercard.probing.statistics import Array

SURROGATES = 1999
SIGNIFICANCE = 0.05
"""The null is beaten where at most this share of surrogates correlates as much."""
FLAT = 1e-9
"""Residuals below this, in ranks, are rounding: the ranking is that of depth itself."""


@dataclass(frozen=True)
class Likeness:
    """How alike two rankings of the same layers are."""

    spearman: float
    """Spearman correlation ρ; NaN where a ranking is constant."""
    partial_spearman: float
    """ρ given depth; NaN where depth alone gives a ranking, or a ranking is constant."""
    p_value: float
    """The share of depth-only surrogates whose partial correlation is at least as high, in (0, 1]; 1 where undefined."""

    @property
    def beats_depth(self) -> bool:
        """Whether the rankings share more than depth, at the level `SIGNIFICANCE`."""
        return self.p_value <= SIGNIFICANCE


def likeness(one: Array, other: Array) -> Likeness:
    """Return how alike two (layers,) scores rank the same layers, numbered from the input; the order does not matter.

    Raises `ValueError` where the numbers of layers differ.
    """
    if one.shape != other.shape or one.ndim != 1:
        raise ValueError(f"scores of shape {one.shape} and {other.shape} do not rank the same layers")
    rho = spearman(one, other)
    departures = departure_from_depth(one), departure_from_depth(other)
    partial = _pearson(*departures)
    if math.isnan(partial):
        return Likeness(rho, partial, 1.0)
    return Likeness(rho, partial, max(_p_value(*departures, partial), _p_value(*departures[::-1], partial)))


def spearman(one: Array, other: Array) -> float:
    """Return Spearman's ρ of two (layers,) scores, ties sharing their mean rank; NaN where one of them is constant."""
    return _pearson(ranks(one), ranks(other))


def partial_spearman(one: Array, other: Array) -> float:
    """Return Spearman's ρ of two (layers,) scores given depth; NaN where depth alone gives a ranking."""
    return _pearson(departure_from_depth(one), departure_from_depth(other))


def ranks(scores: Array) -> Array:
    """Return (layers,) ranks from 1 for the lowest score, ties sharing their mean."""
    from scipy.stats import rankdata  # most runs consult no card and need not wait for its import

    found: Array = rankdata(scores)
    return found


def departure_from_depth(scores: Array) -> Array:
    """Return (layers,) the residuals of ranks after a straight line in depth, exactly zero where nothing is left."""
    return _detrended(ranks(scores))


def _detrended(rows: Array) -> Array:
    """Take mean and linear trend along the last axis, (…, layers), out."""
    depth = np.arange(rows.shape[-1], dtype=np.float64)
    depth -= depth.mean()
    left = rows - rows.mean(axis=-1, keepdims=True)
    slope = left @ depth / max(float(depth @ depth), 1.0)
    left = left - slope[..., None] * depth
    left[np.abs(left) < FLAT] = 0.0
    return left


def _pearson(one: Array, other: Array) -> float:
    one, other = one - one.mean(), other - other.mean()
    scale = float(np.linalg.norm(one) * np.linalg.norm(other))
    return min(1.0, max(-1.0, float(one @ other) / scale)) if scale > 0 else math.nan


def _p_value(one: Array, other: Array, observed: float) -> float:
    """Return the share of `one`'s surrogates that correlate with `other` as much as was observed, itself among them."""
    drawn = _detrended(_surrogates(one))
    scale = np.linalg.norm(drawn, axis=1) * np.linalg.norm(other)
    correlations = np.divide(drawn @ other, scale, out=np.zeros(SURROGATES), where=scale > 0)
    return float((1 + np.sum(correlations >= observed - FLAT)) / (1 + SURROGATES))


def _surrogates(residuals: Array) -> Array:
    """Return (surrogates, layers) with the amplitudes of the residuals' spectrum and random phases, always the same."""
    generator, layers = np.random.default_rng(0), len(residuals)
    amplitudes = np.abs(np.fft.rfft(residuals))
    phases = generator.uniform(0.0, 2 * math.pi, (SURROGATES, len(amplitudes)))
    if layers % 2 == 0:
        phases[:, -1] = math.pi * (phases[:, -1] > math.pi)  # the highest frequency has a sign and no phase
    drawn: Array = np.fft.irfft(amplitudes * np.exp(1j * phases), layers)
    return drawn
