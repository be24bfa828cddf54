"""What a scorer is (`Scorer`) and what it returns (`LayerScores`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from layercard.errors import ProbeError
from layercard.probing.statistics import Array, LayerStatistics, Need


class SetWorth(Protocol):
    """What sets of layers are worth together; a larger set is worth no less than a part of it."""

    def of(self, layers: Sequence[int]) -> float:
        """Return the worth of a set, of at least one layer."""

    def grown(self, held: Sequence[int], candidates: Sequence[int]) -> Iterator[tuple[int, float]]:
        """Yield which of `candidates` raises the worth of the set `held` most, and the worth with it, then the next one."""


@dataclass(frozen=True)
class LayerScores:
    """One score of every layer: `importance` (higher = adapt first) beside the `raw` statistic it comes from.

    Both are NaN where a layer holds no target module.
    """

    name: str
    importance: Array
    raw: Array
    sets: SetWorth | None = None
    """What sets of layers are worth, where the score knows more than that importance adds up."""

    def ranked(self) -> list[int]:
        """Return the layers that have a score by falling importance; the deeper one first where two are equal."""
        scored = np.flatnonzero(~np.isnan(self.importance)).tolist()
        return sorted(scored, key=lambda i: (-self.importance[i], -i))

    def to_dict(self) -> dict[str, list[float | None]]:
        """Return it as JSON holds it: null where a layer has no score."""
        return {"importance": numbers(self.importance), "raw": numbers(self.raw)}


def numbers(values: Array) -> list[float | None]:
    """Return (layers,) values as JSON holds them: null for NaN."""
    found = values.astype(object)
    found[np.isnan(values)] = None
    listed: list[float | None] = found.tolist()
    return listed


def where_scored(values: Array, statistics: LayerStatistics) -> Array:
    """Return (layers,) `values` with NaN where a layer holds no target module."""
    masked = np.full(statistics.num_layers, np.nan)
    masked[list(statistics.scored)] = values[list(statistics.scored)]
    return masked


class Scorer(Protocol):
    """Turns statistics into one importance a layer. Register an instance through `register_scorers`."""

    @property
    def name(self) -> str:
        """What users write for `score`."""

    @property
    def needs(self) -> frozenset[Need]:
        """The statistics it reads; the probe gathers the union over the scorers in use."""

    def score(self, statistics: LayerStatistics) -> LayerScores:
        """Return the scores of all layers; what it says of layers without target modules is not read."""


def needs_of(names: Iterable[str], scorers: Mapping[str, Scorer]) -> frozenset[Need]:
    """Return the statistics that the scorers of these names read; raise `SettingsError` where a name is not registered."""
    return frozenset(need for name in names for need in scorers[name].needs)


def checked(scores: LayerScores, statistics: LayerStatistics) -> LayerScores:
    """Return `scores` with NaN where a layer holds no target module; raise `ProbeError` unless the others are finite."""
    if scores.importance.shape != (statistics.num_layers,):
        raise ProbeError(
            f"The score `{scores.name}` has shape {scores.importance.shape}; {statistics.num_layers} layers need one "
            "number each. This is the scorer's mistake; use another `score` until it is mended."
        )
    bad = [layer for layer in statistics.scored if not np.isfinite(scores.importance[layer])]
    if bad:
        raise ProbeError(
            f"The score `{scores.name}` is undefined for layer {bad[0]} of {statistics.num_layers}"
            f"{''.join(f' ({note})' for note in statistics.notes)}. Use another `score`, or a strategy by depth."
        )
    raw = where_scored(scores.raw, statistics) if scores.raw.shape == scores.importance.shape else scores.raw
    return replace(scores, importance=where_scored(scores.importance, statistics), raw=raw)
