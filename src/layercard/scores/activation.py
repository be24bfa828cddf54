"""Activation magnitude (act-lora.txt, Algorithm 1): the mean L2 norm per token of the attention block's output.

The paper averages the means of mini-batches, which changes with the batch size where lengths differ; this is the mean
over all tokens. Importance is min–max normalised over the layers that hold target modules, as there.
`activation_before` reads the block's input.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from layercard.probing.statistics import Array, LayerStatistics, Need
from layercard.scores.base import LayerScores, where_scored


@dataclass(frozen=True)
class Activation:
    """Mean norm per token, min–max normalised."""

    name: str
    before: bool
    needs: frozenset[Need] = frozenset({"attention_norms"})

    def score(self, statistics: LayerStatistics) -> LayerScores:
        """Return the scores of all layers."""
        raw = statistics.attention_input_norm if self.before else statistics.attention_output_norm
        assert raw is not None
        return LayerScores(self.name, min_max(where_scored(raw, statistics)), raw)


def min_max(raw: Array) -> Array:
    """Return `raw` scaled to [0, 1], NaN left out; ones where every layer is alike."""
    lowest, highest = np.nanmin(raw), np.nanmax(raw)
    return (raw - lowest) / (highest - lowest) if highest > lowest else np.where(np.isnan(raw), raw, 1.0)


SCORERS = (Activation("activation", before=False), Activation("activation_before", before=True))
