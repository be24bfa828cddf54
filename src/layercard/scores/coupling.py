"""How much layers stand in for each other: the coupling of layer-card.txt, which the paper defines and does not measure.

Theorem 5.2: with H_SS = D_S + E_S, D_S its diagonal blocks, ρ_S = ‖D_S^-½ E_S D_S^-½‖₂ and Δ(S) ≥ Σ_{ℓ∈S} Δ({ℓ}) / (1 + ρ_S): at
ρ_S = 0 gains add up. Proposition 5.1, with a single layer m for R: κ_ℓm = ‖H_ℓℓ^-½ H_ℓm H_mm^-½‖₂² in [0, 1), 0 where the two
learn apart, near 1 where one can do what the other does.

With H as in `set_gain.py`, H_ℓm = Φ_ℓᵀΦ_m/n for ℓ ≠ m, so that H_ℓℓ^-½ H_ℓm H_mm^-½ = W_ℓᵀW_m with W_ℓ = Φ_ℓ H_ℓℓ^-½/√n. Now
W_ℓW_ℓᵀ = K_ℓ(K_ℓ + nλI)⁻¹ =: P_ℓ, hence W_ℓ is P_ℓ^½ but for orthonormal columns of each layer's own, which change no norm: the
same norms belong to P_ℓ^½P_m^½, of n × n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from layercard.probing.statistics import Array
from layercard.scores.set_gain import SetGain

ITERATIONS = 1000
PRECISION = 1e-9


@dataclass(frozen=True)
class Coupling:
    """Of a set of layers S: ρ_S, κ of each two of them, (|S|, |S|) with zeros on its diagonal, Δ(S) and the sum of Δ({ℓ})."""

    layers: tuple[int, ...]
    rho: float
    kappa: Array
    gain: float
    added_up: float

    @property
    def strongest(self) -> tuple[int, int, float]:
        """The two layers with the largest κ, and κ; of a set of one layer, that layer twice and 0."""
        first, second = sorted(divmod(int(self.kappa.argmax()), len(self.layers)))
        return self.layers[first], self.layers[second], float(self.kappa.max())

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return {
            "layers": list(self.layers),
            "rho": self.rho,
            "kappa": self.kappa.tolist(),
            "gain": self.gain,
            "sum_of_single_gains": self.added_up,
        }


def coupling(sets: SetGain, layers: Sequence[int]) -> Coupling:
    """Return how the layers of a set are coupled; at least one layer, each once."""
    roots = _roots(sets.kernels[list(layers)], sets.damping)
    kappa = np.array([np.linalg.norm(root @ roots, ord=2, axis=(-2, -1)) ** 2 for root in roots])
    np.fill_diagonal(kappa, 0.0)
    alone = sum(sets.of([layer]) for layer in layers)
    return Coupling(tuple(layers), _rho(roots), kappa, sets.of(layers), alone)


def _roots(kernels: Array, damping: float) -> Array:
    """Return P^½ of each kernel (layers, n, n), with P = K(K + nλI)⁻¹."""
    values, vectors = np.linalg.eigh(kernels)
    values = np.maximum(values, 0.0)  # rounding
    shrunk = np.sqrt(values / (values + damping))
    roots: Array = vectors * shrunk[:, None, :] @ vectors.swapaxes(-1, -2)
    return roots


def _rho(roots: Array) -> float:
    """Return ‖M‖₂ of the matrix with blocks P_ℓ^½P_m^½, ℓ ≠ m, and zeros on its diagonal, by power iteration on M²."""
    vector = np.random.default_rng(0).normal(size=roots.shape[:2])
    found = 0.0
    for _ in range(ITERATIONS):
        vector /= np.linalg.norm(vector)
        once = _off_diagonal(roots, vector)
        before, found = found, float(np.linalg.norm(once))
        if found == 0.0 or abs(found - before) <= PRECISION * found:
            break
        vector = _off_diagonal(roots, once)
    return found


def _off_diagonal(roots: Array, vector: Array) -> Array:
    """Return M times `vector` (layers, n): each layer's part of the sum over the others."""
    parts = (roots @ vector[..., None])[..., 0]
    others = parts.sum(0) - parts
    product: Array = (roots @ others[..., None])[..., 0]
    return product
