"""The effective rank of what a layer reads (layer-card.txt, figure 3): low means ill-conditioned, hard to optimise."""

from __future__ import annotations

from dataclasses import dataclass

from layercard.probing.statistics import LayerStatistics, Need
from layercard.scores.base import LayerScores


@dataclass(frozen=True)
class EffectiveRank:
    """Effective rank of the second moment of a layer's input."""

    name: str = "effective_rank"
    needs: frozenset[Need] = frozenset({"covariance"})

    def score(self, statistics: LayerStatistics) -> LayerScores:
        """Return the scores of all layers."""
        assert statistics.effective_rank is not None
        return LayerScores(self.name, statistics.effective_rank, statistics.effective_rank)


SCORERS = (EffectiveRank(),)
