"""The raw gradient norm of a layer's adapter: the baseline that layer-card.txt (section 7, figure 7) argues against."""

from __future__ import annotations

from dataclasses import dataclass

from layercard.probing.statistics import LayerStatistics, Need
from layercard.scores.base import LayerScores


@dataclass(frozen=True)
class GradientNorm:
    """Mean over examples of the norm of ∂L/∂B over all target modules."""

    name: str = "gradient_norm"
    needs: frozenset[Need] = frozenset({"gradients"})

    def score(self, statistics: LayerStatistics) -> LayerScores:
        """Return the scores of all layers."""
        assert statistics.gradient_norm is not None
        return LayerScores(self.name, statistics.gradient_norm, statistics.gradient_norm)


SCORERS = (GradientNorm(),)
