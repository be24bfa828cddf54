"""What a scorer is (`Scorer`) and what it returns (`LayerScores`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from layercard.errors import ProbeError
from layercard.probing.statistics import Array, LayerStatistics, Need


@dataclass(frozen=True)
class LayerScores:
    """One score of every layer: `importance` (higher = adapt first) beside the `raw` statistic it comes from."""

    name: str
    importance: Array
    raw: Array

    def ranked(self) -> list[int]:
        """Return the layers by falling importance; the deeper one first where two are equal."""
        depth = len(self.importance)
        return sorted(range(depth), key=lambda i: (-self.importance[i], -i))


class Scorer(Protocol):
    """Turns statistics into one importance a layer. Register an instance through `register_scorers`."""

    @property
    def name(self) -> str:
        """What users write for `score`."""

    @property
    def needs(self) -> frozenset[Need]:
        """The statistics it reads; the probe gathers the union over the scorers in use."""

    def score(self, statistics: LayerStatistics) -> LayerScores:
        """Return the scores of all layers."""


def checked(scores: LayerScores, statistics: LayerStatistics) -> LayerScores:
    """Return `scores` where they cover every layer with finite numbers; raise `ProbeError` otherwise."""
    if scores.importance.shape != (statistics.num_layers,):
        raise ProbeError(
            f"The score `{scores.name}` has shape {scores.importance.shape}; {statistics.num_layers} layers need one "
            "number each. This is the scorer's mistake; use another `score` until it is mended."
        )
    bad = np.flatnonzero(~np.isfinite(scores.importance))
    if bad.size:
        raise ProbeError(
            f"The score `{scores.name}` is undefined for layer {bad[0]} of {statistics.num_layers}"
            f"{''.join(f' ({note})' for note in statistics.notes)}. Use another `score`, or a strategy by depth."
        )
    return scores
