"""Whether a card's runs agree: what `status: reproduced` means.

Each seed of a study is a run from scratch: its own probe examples and projections, its own training examples, their
order, and the adapters' initial values; model, held-out examples and budget are shared. A second run of the same seed
on the same machine would repeat the same numbers and prove nothing, so other seeds are asked to agree:

- the layers' ranking by resnorm of any two seeds correlates with ρ ≥ `LEAST_RANK_CORRELATION`;
- every set of layers gains over the untuned model within `TOLERANCE` of what all-layer LoRA gains, in the main metric.

A card whose runs do not agree, or that has one, stays `community`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from layercard.cards.correlation import spearman
from layercard.probing.statistics import Array

LEAST_RANK_CORRELATION = 0.95
TOLERANCE = 0.15
"""A share of the all-layer gain."""


def reproduction(
    rankings: Mapping[int, Array], gains: Mapping[str, Sequence[float]], reference: str, date: str
) -> dict[str, Any] | None:
    """Return what a card holds under `reproduction` where the runs agree, or None.

    Parameters: `rankings` (layers,) by seed; `gains` of every set of layers, one number a seed in the seeds' order;
    `reference` names the set that adapts all layers.
    """
    if len(rankings) < 2:
        return None
    whole = sum(gains[reference]) / len(gains[reference])
    least = min(spearman(one, other) for one, other in combinations(rankings.values(), 2))
    if whole <= 0 or least < LEAST_RANK_CORRELATION:
        return None
    largest = max((max(values) - min(values)) / whole for values in gains.values())
    if largest > TOLERANCE:
        return None
    return {
        "tolerance": TOLERANCE,
        "largest_difference": largest,
        "rank_correlation": least,
        "least_rank_correlation": LEAST_RANK_CORRELATION,
        "seeds": list(rankings),
        "date": date,
        "what": "differences between seeds in the gain of any set of layers, as a share of the all-layer gain",
    }
