"""Set gain: what adapting a set of layers together gains in a quadratic model of the loss, so that layers which learn the
same from the same examples count once.

Layer-card.txt, theorem 5.2, eq. (3): with Q(θ) = Q(0) + gᵀθ + ½ θᵀHθ and only the parameters of the layers S free, the best
point is θ_S = −H_SS⁻¹ g_S and the gain Δ(S) = ½ g_Sᵀ H_SS⁻¹ g_S. Here θ are the LoRA factors B at 0, where ∂L/∂A = 0. Let
row i of Φ_S hold example i's gradient over the layers S. Then g_S = Φ_Sᵀ1/n, and for H_SS stands the empirical Fisher
matrix with damping, Φ_SᵀΦ_S/n + λI. Since Φ(ΦᵀΦ/n + λI)⁻¹Φᵀ = n K(K + nλI)⁻¹ with K_S = Φ_SΦ_Sᵀ = Σ_{ℓ∈S} K_ℓ,

    Δ(S) = ½ · (1/n²) · 1ᵀ Φ_S (Φ_SᵀΦ_S/n + λI)⁻¹ Φ_Sᵀ 1 = ½ · (1/n) · 1ᵀ K_S (K_S + nλI)⁻¹ 1,

which needs n × n matrices alone. It grows with S and stays under ½.

Two conventions, both unproven. Each K_ℓ is divided by its mean diagonal, which is the same quadratic model in parameters
scaled so that every layer's gradients are equally long: Adam moves layers about equally far whatever their gradients' size.
And nλ is the mean eigenvalue of all layers' K, which is then their number. The Fisher matrix is not the Hessian, and n
examples are few: what Δ says of quality after training is unproven.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from layercard.probing.statistics import Array, LayerStatistics, Need
from layercard.scores.base import LayerScores

NAME = "set_gain"
ROUNDING = 1e-9
"""The smallest determinant, beside its terms, that bounds are taken from."""


@dataclass(frozen=True)
class SetGain:
    """Δ of any set of layers; `kernels` (layers, n, n) are symmetric and without negative eigenvalues, `damping` is nλ > 0."""

    kernels: Array
    damping: float

    @classmethod
    def of_grams(cls, grams: Array, layers: Sequence[int]) -> SetGain:
        """Return the gain by inner products (layers, n, n) of example gradients, of which those of `layers` are known."""
        examples = grams.shape[-1]
        kernels = np.zeros_like(grams)
        for layer in layers:
            mean = np.trace(grams[layer]) / examples
            if mean > 0:  # a layer that no gradient reaches gains nothing
                kernels[layer] = grams[layer] / mean
        return cls(kernels, float(len(layers)))

    def of(self, layers: Sequence[int]) -> float:
        """Return Δ of the set `layers`, between 0 and ½."""
        return self._gain(self._inverse(self._damped(layers)))

    def grown(self, held: Sequence[int], candidates: Sequence[int]) -> Iterator[tuple[int, float]]:
        """Yield which of `candidates` raises Δ of the set `held` most, and Δ with it, then the next one, until none is left.

        Of candidates that raise it alike the first one by upper bounds comes first, the deeper one where those are alike too.
        """
        damped, left = self._damped(held), sorted(candidates, reverse=True)
        kernels, inverse = self.kernels[left], self._inverse(damped)
        while left:
            place, inverse = self._best(damped, inverse, kernels)
            damped = damped + kernels[place]
            yield left.pop(place), self._gain(inverse)
            kernels = np.delete(kernels, place, axis=0)

    def _best(self, damped: Array, inverse: Array, kernels: Array) -> tuple[int, Array]:
        """Return the place of the one of `kernels` that raises Δ most when added to `damped`, and the inverse of that sum.

        Kernels are tried by falling upper bounds, until no bound is above the best Δ found.
        """
        bounds = self._bounds(inverse, kernels)
        order = np.argsort(-bounds, kind="stable")
        best, found = int(order[0]), self._inverse(damped + kernels[order[0]])
        for place in order[1:]:
            if bounds[place] <= self._gain(found):
                break
            other = self._inverse(damped + kernels[place])
            if self._gain(other) > self._gain(found):
                best, found = int(place), other
        return best, found

    def _bounds(self, inverse: Array, kernels: Array) -> Array:
        """Return upper bounds (m,) of Δ with each of `kernels` (m, n, n) added to the A whose `inverse` is given.

        For M = A + K and any columns U, 1ᵀM⁻¹1 is at least rᵀ(UᵀMU)⁻¹r with r = Uᵀ1. Here U holds the first two terms of the
        series of M⁻¹1, v = A⁻¹1 and u = A⁻¹Kv, and all products are moments s_i = 1ᵀ(A⁻¹K)^i v.
        """
        v = inverse.sum(0)
        kv = kernels @ v
        u = kv @ inverse
        s0, s1, s2 = v.sum(), kv @ v, (u * kv).sum(-1)
        s3 = (u * (kernels @ u[..., None])[..., 0]).sum(-1)
        determinant = (s0 + s1) * (s2 + s3) - (s1 + s2) ** 2
        numerator = s0**2 * (s2 + s3) - 2 * s0 * s1 * (s1 + s2) + s1**2 * (s0 + s1)
        useful = determinant > ROUNDING * (s0 + s1) * (s2 + s3)  # else u is v but for its length
        left: Array = np.where(useful, numerator / np.where(useful, determinant, 1.0), s0**2 / (s0 + s1))
        return np.asarray(0.5 - self._scale * left, dtype=np.float64)

    @property
    def _scale(self) -> float:
        return 0.5 * self.damping / self.kernels.shape[-1]

    def _damped(self, layers: Sequence[int]) -> Array:
        """Return K_S + nλI."""
        damped: Array = self.kernels[list(layers)].sum(0) + self.damping * np.eye(self.kernels.shape[-1])
        return damped

    def _inverse(self, damped: Array) -> Array:
        return np.asarray(np.linalg.inv(damped), dtype=np.float64)

    def _gain(self, inverse: Array) -> float:
        """Return Δ by the inverse of K + nλI: K(K + c)⁻¹1 is 1 − c(K + c)⁻¹1."""
        return float(0.5 - self._scale * inverse.sum())


@dataclass(frozen=True)
class SetGainScorer:
    """Δ of each layer alone; `sets` of its scores knows that of any set."""

    name: str = NAME
    needs: frozenset[Need] = frozenset({"gradient_gram"})

    def score(self, statistics: LayerStatistics) -> LayerScores:
        """Return the scores of all layers."""
        assert statistics.gradient_gram is not None
        sets = SetGain.of_grams(statistics.gradient_gram, statistics.scored)
        alone = np.array([sets.of([layer]) for layer in range(statistics.num_layers)])
        return LayerScores(self.name, alone, alone, sets=sets)


SCORERS = (SetGainScorer(),)
