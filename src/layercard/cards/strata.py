"""Regimes: strata of layers by resnorm, the unit that Layer Cards record and transfer.

The stratification of layer-card.txt, section 4: layers ranked by projected residual norm and cut into equal parts.
Ranks go by importance and among equals to the deeper layer, as scores rank them everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from layercard.errors import ProbeError
from layercard.probing.statistics import Array
from layercard.scores.base import LayerScores

REGIMES = ("high", "mid", "low")
"""The names of the three strata, the most important layers first."""


def stratify(importance: Array | Sequence[float], parts: int = 3) -> tuple[tuple[int, ...], ...]:
    """Return the layers cut into `parts` strata by falling importance, (layers,); each stratum ascending.

    Sizes differ by at most one, the larger ones first. Raises `ProbeError` where a number is not finite or there are
    fewer layers than parts.
    """
    values = np.asarray(importance, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ProbeError(
            f"The importance of layer {int(np.flatnonzero(~np.isfinite(values))[0])} of {len(values)} is not a finite "
            "number, so layers cannot be ranked. Probe again, or with another `score`."
        )
    if not 1 <= parts <= len(values):
        raise ProbeError(f"{len(values)} layers cannot be cut into {parts} strata; ask for 1 to {len(values)}.")
    ranked = LayerScores("importance", values, values).ranked()
    return tuple(tuple(sorted(int(i) for i in part)) for part in np.array_split(ranked, parts))


def regimes(importance: Array | Sequence[float]) -> dict[str, tuple[int, ...]]:
    """Return the strata `high`, `mid` and `low` of (layers,) importance."""
    return dict(zip(REGIMES, stratify(importance, len(REGIMES)), strict=True))
