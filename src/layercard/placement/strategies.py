"""The strategies: how a number of layers is picked, by score, by depth, or by chance.

Offers the protocol `Strategy`, what a strategy is asked (`StrategyRequest`) and the built-in `STRATEGIES`. Knows
nothing of settings: `choose.py` turns them into a request and checks the answer.

    by score    high, mid, low      the layers ranked highest, in the middle, lowest (layer-card.txt, tables 3 and 4)
                cumulative          the fewest layers that hold a share of the importance (act-lora.txt, section 7.2)
                budget              the best set within a share of the step time (`budget.py`)
                set_gain            one after another by what the set gains (`set_gain.py`)
    by depth    all                 every layer: all-layer LoRA
                first, middle, last a block at the input, in the middle, at the output
                uniform             the centres of equal bins (layer-card.txt, section 5.1)
    by chance   random              the baseline of layer-card.txt, table 3
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, TypedDict

import numpy as np

from layercard.errors import PlacementError, PluginError
from layercard.probing.statistics import Array
from layercard.scores.base import LayerScores

By: TypeAlias = Literal["score", "depth", "chance"]
StepRatio: TypeAlias = Callable[[Collection[int]], float]
"""The predicted step time of a set of layers over all-layer LoRA's; no set costs less than a part of it."""
PeakBytes: TypeAlias = Callable[[Collection[int]], int]
"""The predicted peak memory, in bytes, of a run that adapts a set of layers; the same."""


class Predictions(TypedDict, total=False):
    """What sets of layers are predicted to cost, handed on by name; None where nothing limits it."""

    step_ratio: StepRatio | None
    peak: PeakBytes | None


@dataclass(frozen=True)
class StrategyRequest:
    """What a strategy is asked: `count` layers out of `candidates`.

    Candidates are the layers from `min_entry` up that have adapters: all of `min_entry` … `num_layers` - 1 in most models, one
    in four in many hybrid ones. `count` is already known to fit. `scores` is there exactly where the strategy declares
    `by = "score"`. `cumulative_threshold` is a share in (0, 1], read by `cumulative` alone. `seed` is for strategies by chance.
    """

    num_layers: int
    count: int
    scores: LayerScores | None = None
    min_entry: int = 0
    seed: int = 0
    cumulative_threshold: float = 0.75
    adaptable: tuple[int, ...] | None = None
    """The layers that have adapters, ascending; None: every layer."""
    budget: float = 1.0
    """The largest step ratio allowed, in (0, 1], read by `budget` alone."""
    min_gain: float | None = None
    """The least share of the candidates' summed score, in (0, 1], read by `budget` alone; None where a budget is given."""
    step_ratio: StepRatio | None = None
    """What a set of layers is predicted to cost; None where nobody could say."""
    max_memory: int | None = None
    """The bytes of the device, of which a tenth is to stay free, read by `budget` alone; None: any."""
    peak: PeakBytes | None = None
    """What a set of layers is predicted to hold; None where nobody could say."""

    @property
    def adapted(self) -> Sequence[int]:
        """The layers that have adapters, ascending; shares and thirds count among them."""
        return range(self.num_layers) if self.adaptable is None else self.adaptable

    @property
    def candidates(self) -> Sequence[int]:
        """The layers that may be chosen, ascending."""
        if self.adaptable is None:
            return range(self.min_entry, self.num_layers)
        return tuple(layer for layer in self.adaptable if layer >= self.min_entry)

    @property
    def importance(self) -> Array:
        """(layers,) importance, NaN where a layer has no adapters.

        Raises `PluginError` where the strategy did not declare that it needs scores.
        """
        return self._given().importance

    @property
    def ranked(self) -> list[int]:
        """The candidates by falling importance; raises `PluginError` like `importance`."""
        allowed = set(self.candidates)
        return [layer for layer in self._given().ranked() if layer in allowed]

    def _given(self) -> LayerScores:
        if self.scores is None:
            raise PluginError(
                "A strategy read scores and was given none. Strategies that rank layers declare `by = 'score'`; "
                "mend the plugin that supplies it."
            )
        return self.scores


class Strategy(Protocol):
    """Picks layers. Register an instance through `register_strategies`."""

    @property
    def name(self) -> str:
        """What users write for `strategy`."""

    @property
    def by(self) -> By:
        """What it goes by; only strategies by score make layercard probe before choosing."""

    def choose(self, request: StrategyRequest) -> tuple[int, ...]:
        """Return layers of `request.candidates`, ascending, each once."""


def checked(strategy: Strategy, request: StrategyRequest, owner: str) -> tuple[int, ...]:
    """Return the layers that `strategy`, of the plugin `owner`, picks; how many is its own business.

    Raises `PlacementError` where they cannot be used.
    """
    layers = strategy.choose(request)
    fits = all(layer in request.candidates for layer in layers)
    if not layers or not fits or list(layers) != sorted(set(layers)):
        within = f"within {request.min_entry}–{request.num_layers - 1}"
        if request.adaptable is not None:
            within = f"among the request's candidates {list(request.candidates)}, which have adapters"
        raise PlacementError(
            f"The strategy `{strategy.name}` of the plugin `{owner}` chose {list(layers)}. Layers are ascending, each once, "
            f"{within}. This is the plugin's mistake; use another `strategy`."
        )
    return tuple(int(layer) for layer in layers)


@dataclass(frozen=True)
class Rule:
    """A strategy made of one function."""

    name: str
    by: By
    pick: Callable[[StrategyRequest], list[int]]

    def choose(self, request: StrategyRequest) -> tuple[int, ...]:
        """Return the picked layers, ascending."""
        return tuple(sorted(self.pick(request)))


def high(request: StrategyRequest) -> list[int]:
    """Pick the layers ranked highest."""
    return request.ranked[: request.count]


def mid(request: StrategyRequest) -> list[int]:
    """Pick the layers whose ranks are centred between the highest and the lowest."""
    start = (len(request.candidates) - request.count) // 2
    return request.ranked[start : start + request.count]


def low(request: StrategyRequest) -> list[int]:
    """Pick the layers ranked lowest."""
    return request.ranked[len(request.candidates) - request.count :]


def cumulative(request: StrategyRequest) -> list[int]:
    """Pick the fewest layers, highest first, whose shares of importance sum to the threshold.

    Shares are of the importance min–max normalised over the candidates, the normalisation of act-lora.txt's
    Algorithm 1, so negative importance needs no special case and the lowest layer has share zero: its table 8 reaches
    100% with 11 of BERT's 12 layers. Where all candidates are equally important each has the same share.
    """
    ranked = request.ranked
    importance = request.importance[ranked]
    spread = importance[0] - importance[-1]
    normalised = (importance - importance[-1]) / spread if spread > 0 else np.ones(len(ranked))
    reached = np.cumsum(normalised) / normalised.sum()
    enough = reached >= request.cumulative_threshold - 1e-12  # a sum of shares may miss 1 by rounding
    return ranked[: int(np.argmax(enough)) + 1]


def first(request: StrategyRequest) -> list[int]:
    """Pick the block at the input side, from `min_entry` up."""
    return list(request.candidates[: request.count])


def middle(request: StrategyRequest) -> list[int]:
    """Pick the block in the middle of the candidates."""
    start = (len(request.candidates) - request.count) // 2
    return list(request.candidates[start : start + request.count])


def last(request: StrategyRequest) -> list[int]:
    """Pick the block at the output side."""
    return list(request.candidates[len(request.candidates) - request.count :])


def uniform(request: StrategyRequest) -> list[int]:
    """Pick the centres of `count` equal bins of the candidates.

    A centre between two layers goes to the deeper one. Bins narrower than two layers would put layer 0 in, and with it
    the whole depth into backpropagation; they start at the next candidate instead, so that layer 0 is adapted only where
    every candidate is.
    """
    candidates = request.candidates
    places = _centres(0, len(candidates), request.count)
    if candidates[places[0]] == 0 and request.count < len(candidates):
        places = _centres(1, len(candidates), request.count)
    return [candidates[place] for place in places]


def _centres(start: int, stop: int, count: int) -> list[int]:
    # place i covers [i, i + 1); integers, so that no rounding moves a centre that falls on a boundary
    return [start + (2 * j + 1) * (stop - start) // (2 * count) for j in range(count)]


def every(request: StrategyRequest) -> list[int]:
    """Pick every candidate."""
    return list(request.candidates)


def chance(request: StrategyRequest) -> list[int]:
    """Pick any layers, the same for the same seed."""
    return random.Random(request.seed).sample(request.candidates, request.count)


STRATEGIES: tuple[Strategy, ...] = (
    Rule("high", "score", high),
    Rule("mid", "score", mid),
    Rule("low", "score", low),
    Rule("cumulative", "score", cumulative),
    Rule("all", "depth", every),
    Rule("first", "depth", first),
    Rule("middle", "depth", middle),
    Rule("last", "depth", last),
    Rule("uniform", "depth", uniform),
    Rule("random", "chance", chance),
)
