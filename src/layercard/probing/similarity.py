"""Linear CKA between two representations of the same examples, debiased."""

from __future__ import annotations

import math

import numpy as np

from layercard.probing.statistics import Array

FEWEST_EXAMPLES = 4


def debiased_linear_cka(x: Array, y: Array) -> float:
    """Return linear CKA of `x` (examples, d₁) and `y` (examples, d₂), NaN where one of them does not vary.

    Kornblith et al. 2019, eq. 5, with the unbiased estimator of HSIC as Nguyen et al. 2021, eq. 3 (Song et al. 2012).
    Needs at least four examples.
    """
    k, l_ = _gram(x), _gram(y)
    scale = _hsic(k, k) * _hsic(l_, l_)
    return float(_hsic(k, l_) / math.sqrt(scale)) if scale > 0 else math.nan


def _gram(x: Array) -> Array:
    centred = x - x.mean(0)  # changes nothing in exact arithmetic; keeps digits where the mean is large
    if np.linalg.norm(centred) <= 1e-6 * np.linalg.norm(x):
        centred = np.zeros_like(x)
    gram = centred @ centred.T
    np.fill_diagonal(gram, 0.0)
    return gram


def _hsic(k: Array, l_: Array) -> float:
    """The unbiased HSIC of two Gram matrices whose diagonals are zero."""
    n = len(k)
    trace = float(np.sum(k * l_))
    sums = float(k.sum() * l_.sum()) / ((n - 1) * (n - 2))
    cross = 2.0 / (n - 2) * float(k.sum(0) @ l_.sum(0))
    return (trace + sums - cross) / (n * (n - 3))


def effective_rank(x: Array) -> float:
    """Return the effective rank of the second moment E[x xᵀ] of `x` (tokens, d): Roy & Vetterli 2007, definition 1.

    The exponential of the entropy of the eigenvalues, normalised to sum 1: between 1 and min(tokens, d).
    """
    eigenvalues = np.linalg.svd(x, compute_uv=False) ** 2
    total = eigenvalues.sum()
    if total == 0:
        return math.nan
    share = eigenvalues[eigenvalues > 0] / total
    return float(math.exp(-(share * np.log(share)).sum()))
