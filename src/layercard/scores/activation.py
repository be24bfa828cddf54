"""Activation magnitude (act-lora.txt, Algorithm 1): the mean L2 norm per token of the attention block's output.

The paper averages the means of mini-batches, which changes with the batch size where lengths differ; this is the mean
over all tokens. Importance is min–max normalised over layers, as there. `activation_before` reads the block's input.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from layercard.probing.statistics import Array, LayerStatistics, Need
from layercard.scores.base import LayerScores


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
        return LayerScores(self.name, min_max(raw), raw)


def min_max(raw: Array) -> Array:
    """Return `raw` scaled to [0, 1]; all ones where every layer is alike."""
    span = raw.max() - raw.min()
    return (raw - raw.min()) / span if span > 0 else np.ones_like(raw)


SCORERS = (Activation("activation", before=False), Activation("activation_before", before=True))
