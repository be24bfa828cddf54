"""What the matching Layer Cards say of each set of layers that they tried, and the choice among these.

The last lines of layer-card.txt's Algorithm 1 leave two things open, which are completed here:

- *combining*: an outcome's share of all-layer LoRA's gain, its cost and its memory are means over the matching cards,
  weighted by ρ. Only what every matching card tried is compared.
- *choosing*: `quality` takes the set that kept the largest share. `balanced` takes the cheapest one (seconds of a step)
  that kept at least 95%, `speed` the cheapest that kept at least 90%; where none did, or none was timed, they take the
  one that kept most. Where that kept less than 95% (`quality`) or 90% (`balanced`), every layer is adapted: the cards
  are evidence that placement costs more than it is worth. So quality never expects less than balanced, nor balanced less
  than speed.

A regime is a stratum of the *target's* layers by resnorm; a strategy by depth is the same layers on every card.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from layercard.cards.card import LayerCard, Outcome
from layercard.settings import Prefer

FLOORS: dict[Prefer, float | None] = {"quality": None, "balanced": 0.95, "speed": 0.9}
"""The share of all-layer LoRA's gain that the cheapest set must have kept; None: as much as any."""
WORTH: dict[Prefer, float | None] = {"quality": 0.95, "balanced": 0.9, "speed": None}
"""Where even the best set kept less, every layer is adapted; None: never, for speed was asked for."""
EVERY = "all_layers"
"""What cards call the outcome of all-layer LoRA."""


@dataclass(frozen=True)
class WeightedCard:
    """A matching card and its weight; weights sum to 1."""

    card: LayerCard
    weight: float


@dataclass(frozen=True)
class Option:
    """A set of this model's layers, and what the cards lead one to expect of it."""

    name: str
    by_score: bool
    """Whether it is a regime; otherwise it goes by depth."""
    layers: tuple[int, ...]
    share_kept: float
    """Of all-layer LoRA's gain in the cards' main metric; the weighted mean."""
    lowest_share_kept: float
    """The same on the card where it was lowest."""
    step_seconds_ratio: float | None
    """Over all-layer LoRA; None where no card timed it."""
    peak_memory_ratio: float | None
    """Over all-layer LoRA; None where no card measured it."""
    gain: float | None
    """Over the untuned model, in the main metric; None where cards count in different metrics."""


def options(cards: Sequence[WeightedCard], strata: Mapping[str, tuple[int, ...]]) -> tuple[Option, ...]:
    """Return every set of layers that all `cards` tried, by name; `strata` are the target's own regimes by name."""
    tried = [dict(_tried(weighted.card, strata)) for weighted in cards]
    common = set.intersection(*(set(outcomes) for outcomes in tried)) if tried else set()
    return tuple(_option(cards, tried, *found) for found in sorted(common))


def every_layer(cards: Sequence[WeightedCard], num_layers: int) -> Option:
    """Return all-layer LoRA as an option: by definition it keeps all of its gain, at its own cost."""
    gain = _mean(cards, [weighted.card.gain(EVERY) for weighted in cards]) if _one_metric(cards) else None
    return Option(EVERY, False, tuple(range(num_layers)), 1.0, 1.0, 1.0, 1.0, gain)


def choose(found: Sequence[Option], prefer: Prefer, every: Option | None = None) -> Option:
    """Return the option that `prefer` asks for, among at least one; `every` where it may be all layers."""
    most = most_kept(found)
    worth, enough = WORTH[prefer], [o for o in found if meets(o, prefer) and o.step_seconds_ratio is not None]
    if every is not None and worth is not None and most.share_kept < worth:
        return every
    if prefer == "quality" or not enough:
        return most
    return min(enough, key=lambda o: (_seconds(o), -o.share_kept, o.name))


def most_kept(found: Sequence[Option]) -> Option:
    """Return the option that kept the largest share, the cheapest where several did."""
    return min(found, key=lambda o: (-o.share_kept, _seconds(o), o.name))


def meets(option: Option, prefer: Prefer) -> bool:
    """Whether the option kept what `prefer` asks for at least."""
    floor = FLOORS[prefer]
    return floor is None or option.share_kept >= floor


def _seconds(option: Option) -> float:
    return float("inf") if option.step_seconds_ratio is None else option.step_seconds_ratio


Key = tuple[str, tuple[int, ...]]


def _tried(card: LayerCard, strata: Mapping[str, tuple[int, ...]]) -> Iterable[tuple[Key, Outcome]]:
    """Yield what the card tried and judged, under this model's name and layers for it."""
    for name, outcome in card.outcomes.items():
        if card.share_kept(name) is None:
            continue
        if outcome.kind == "regime" and outcome.count == len(strata.get(name, ())):
            yield (name, strata[name]), outcome
        elif outcome.kind == "strategy" and outcome.layers:
            yield (name, outcome.layers), outcome


def _option(
    cards: Sequence[WeightedCard], tried: Sequence[Mapping[Key, Outcome]], name: str, layers: tuple[int, ...]
) -> Option:
    outcomes = [outcomes[name, layers] for outcomes in tried]
    shares = [weighted.card.share_kept(name) for weighted in cards]
    return Option(
        name=name,
        by_score=outcomes[0].kind == "regime",
        layers=layers,
        share_kept=_mean(cards, shares) or 0.0,
        lowest_share_kept=min(share for share in shares if share is not None),
        step_seconds_ratio=_mean(cards, [o.step_seconds_ratio for o in outcomes]),
        peak_memory_ratio=_mean(cards, [o.peak_memory_ratio for o in outcomes]),
        gain=_mean(cards, [weighted.card.gain(name) for weighted in cards]) if _one_metric(cards) else None,
    )


def _one_metric(cards: Sequence[WeightedCard]) -> bool:
    return len({weighted.card.main_metric for weighted in cards}) == 1


def _mean(cards: Sequence[WeightedCard], values: Sequence[float | None]) -> float | None:
    """Return the weighted mean over the cards that know the value, or None."""
    known = [(weighted.weight, value) for weighted, value in zip(cards, values, strict=True) if value is not None]
    return sum(w * v for w, v in known) / sum(w for w, _ in known) if known else None
