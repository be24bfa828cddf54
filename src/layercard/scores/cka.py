"""CKA between a layer's input and output (cka-lora.txt): a layer that changes the representation most is adapted first."""

from __future__ import annotations

from dataclasses import dataclass

from layercard.probing.statistics import LayerStatistics, Need
from layercard.scores.base import LayerScores


@dataclass(frozen=True)
class Cka:
    """One minus debiased linear CKA."""

    name: str = "cka"
    needs: frozenset[Need] = frozenset({"representations"})

    def score(self, statistics: LayerStatistics) -> LayerScores:
        """Return the scores of all layers."""
        assert statistics.cka is not None
        return LayerScores(self.name, 1.0 - statistics.cka, statistics.cka)


SCORERS = (Cka(),)
