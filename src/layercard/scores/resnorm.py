"""The projected residual norm (layer-card.txt, eq. 1): how much task signal a layer's adapter could still correct.

Three variants of one idea, gradient norm over the scale of what the adapter reads:

- `resnorm`: E√(Σ_m ‖G_m‖²) / √(mean over target modules of E‖x_m‖²/d_m);
- `resnorm_per_module`: √(Σ_m (E‖G_m‖)² / (E‖x_m‖²/d_m)), so that one module with massive activations buries no other;
- `resnorm_algorithm1`: the norm of the mean gradient instead of the mean norm (layer-card.txt, Algorithm 1, lines 4–6).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from layercard.probing.statistics import Array, LayerStatistics, Need
from layercard.scores.base import LayerScores


def pooled_energy(statistics: LayerStatistics) -> Array:
    """Return (layers,) the mean over a layer's target modules of E‖x‖²/d; NaN where it holds none."""
    assert statistics.energy is not None
    held = ~np.isnan(statistics.energy)
    pooled = np.full(statistics.num_layers, np.nan)
    np.divide(np.nansum(statistics.energy, axis=1), held.sum(axis=1), out=pooled, where=held.any(axis=1))
    return pooled


@dataclass(frozen=True)
class Resnorm:
    """Mean per-example gradient norm over pooled activation scale."""

    name: str = "resnorm"
    needs: frozenset[Need] = frozenset({"gradients", "energy"})

    def score(self, statistics: LayerStatistics) -> LayerScores:
        """Return the scores of all layers."""
        assert statistics.gradient_norm is not None
        raw = statistics.gradient_norm / np.sqrt(pooled_energy(statistics))
        return LayerScores(self.name, raw, raw)


@dataclass(frozen=True)
class ResnormPerModule:
    """Each module's gradient norm over its own activation scale, then pooled."""

    name: str = "resnorm_per_module"
    needs: frozenset[Need] = frozenset({"gradients", "energy"})

    def score(self, statistics: LayerStatistics) -> LayerScores:
        """Return the scores of all layers."""
        assert statistics.module_gradient_norm is not None
        assert statistics.energy is not None
        raw = np.sqrt(np.nansum(statistics.module_gradient_norm**2 / statistics.energy, axis=1))
        return LayerScores(self.name, raw, raw)


@dataclass(frozen=True)
class ResnormAlgorithm1:
    """Norm of the mean gradient over pooled activation scale."""

    name: str = "resnorm_algorithm1"
    needs: frozenset[Need] = frozenset({"mean_gradient", "energy"})

    def score(self, statistics: LayerStatistics) -> LayerScores:
        """Return the scores of all layers."""
        assert statistics.norm_of_mean_gradient is not None
        raw = statistics.norm_of_mean_gradient / np.sqrt(pooled_energy(statistics))
        return LayerScores(self.name, raw, raw)


SCORERS = (Resnorm(), ResnormPerModule(), ResnormAlgorithm1())
