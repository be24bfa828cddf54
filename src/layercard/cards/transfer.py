"""Stage II of layer-card.txt's Algorithm 1: which cards speak for a model and data, and what follows from them.

A card is used where it is eligible (`query.py`: the same model and target modules, reproduced), ranks the layers alike
(Spearman's ρ of resnorm at least `min_spearman`) and more alike than depth alone makes any two (`correlation.py`). What
the used cards found is combined and chosen from in `options.py`. Nothing is taken from a card of another model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from layercard.cards.card import LayerCard
from layercard.cards.correlation import SIGNIFICANCE, Likeness, likeness
from layercard.cards.differences import differences, measured_otherwise
from layercard.cards.options import (
    EVERY,
    FLOORS,
    WORTH,
    Option,
    WeightedCard,
    choose,
    every_layer,
    meets,
    most_kept,
    options,
)
from layercard.cards.query import SCORE, CardQuery, why_incomparable, why_unwelcome
from layercard.cards.strata import REGIMES, regimes
from layercard.settings import Prefer

LEAST = 1e-6
"""The weight of a card whose ρ is zero, where `min_spearman` allows even that."""


@dataclass(frozen=True)
class TransferRules:
    """What a user asks of cards; the fields are those of `PlacementSettings`."""

    min_spearman: float = 0.9
    community: bool = False
    prefer: Prefer = "balanced"
    min_entry: int = 0
    count: int | None = None
    """How many layers were asked for; None leaves it to the cards."""


@dataclass(frozen=True)
class CardMatch:
    """How far one card was from matching."""

    card: LayerCard
    spearman: float | None
    """None where nothing can be compared."""
    partial_spearman: float | None
    """ρ given depth; None where nothing can be compared, or depth alone gives a ranking."""
    p_value: float | None
    """Of the partial correlation, if depth were all that the rankings share."""
    why_not: str | None
    """None where it matches."""
    weight: float = 0.0
    differences: tuple[str, ...] = ()
    """What else differs from the card's own run."""

    @property
    def matches(self) -> bool:
        """Whether the card is used."""
        return self.why_not is None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON."""
        values = {n: v for n, v in vars(self).items() if n not in {"card", "differences"}}
        return {"card": self.card.key, **values, "matches": self.matches, "differences": list(self.differences)}

    def correlation(self) -> str:
        """Return ρ and the partial ρ for people."""
        if self.spearman is None:
            return "not comparable"
        given_depth = "undefined" if self.partial_spearman is None else f"{self.partial_spearman:.2f}"
        return f"ρ {self.spearman:.2f}, {given_depth} given depth"


@dataclass(frozen=True)
class CardChoice:
    """What a library says to one query."""

    matches: tuple[CardMatch, ...]
    """Every card: those used first, then by falling ρ."""
    options: tuple[Option, ...]
    """What the used cards tried and the rules allow."""
    chosen: Option | None
    """None where cards decide nothing; `reason` then says why."""
    reason: str

    @property
    def used(self) -> tuple[CardMatch, ...]:
        """The matching cards, J* of Algorithm 1."""
        return tuple(match for match in self.matches if match.matches)

    @property
    def measured_otherwise(self) -> tuple[str, ...]:
        """How the used cards' own runs differed from this one, in sentences."""
        return measured_otherwise({match.card.key: match.differences for match in self.used})

    @property
    def metric(self) -> str:
        """What the shares are counted in."""
        return _metrics(self.used)

    def expected(self) -> dict[str, Any] | None:
        """Return what is expected of the chosen option as JSON, or None where none was chosen."""
        if self.chosen is None:
            return None
        values = {n: v for n, v in asdict(self.chosen).items() if n not in {"name", "by_score", "layers"}}
        return {"outcome": self.chosen.name, "metric": self.metric, **values} | {
            "cards": [match.to_dict() for match in self.used]
        }


def transfer(cards: Iterable[LayerCard], query: CardQuery, rules: TransferRules) -> CardChoice:
    """Return which `cards` match, and the layers that follow, if any.

    The query holds the target's resnorm where any card is of its model. The order of `cards` does not matter. Pure: reads
    no file and trains nothing.
    """
    found = _sorted([_match(card, query, rules) for card in sorted(cards, key=_key)])
    used = [match for match in found if match.matches]
    if not used:
        return CardChoice(found, (), None, _why_none(found))
    weighted = [WeightedCard(match.card, match.weight) for match in used]
    assert query.importance is not None
    strata = regimes(query.importance) if query.num_layers >= len(REGIMES) else {}
    tried = options(weighted, strata)
    allowed = tuple(option for option in tried if _allowed(option, rules))
    if not allowed:
        return CardChoice(found, (), None, _why_no_option(used, tried, rules))
    every = every_layer(weighted, query.num_layers)
    chosen = choose(allowed, rules.prefer, every if _allowed(every, rules) else None)
    why = _why_every(most_kept(allowed), used, rules) if chosen.name == EVERY else _why(chosen, used, query, rules)
    return CardChoice(found, allowed, chosen, why)


def _key(card: LayerCard) -> tuple[str, str]:
    return card.key, card.source


def _match(card: LayerCard, query: CardQuery, rules: TransferRules) -> CardMatch:
    if reason := why_incomparable(card, query):
        return CardMatch(card, None, None, None, reason)
    here, there = query.importance, card.importance(SCORE)
    assert here is not None
    assert there is not None
    found = likeness(here, there)
    reason = why_unwelcome(card, query, community=rules.community) or _too_far(found, rules.min_spearman)
    numbers = (_known(found.spearman), _known(found.partial_spearman), found.p_value)
    return CardMatch(card, *numbers, reason, 0.0 if reason else max(found.spearman, LEAST), differences(card, query))


def _too_far(found: Likeness, min_spearman: float) -> str | None:
    if math.isnan(found.spearman):
        return "every layer of one of the two has the same resnorm, so there is no ranking"
    if found.spearman < min_spearman:
        return f"ρ is {found.spearman:.2f}, below `min_spearman` ({min_spearman:g})"
    if not found.beats_depth:
        given = (
            "nothing is left of a ranking"
            if math.isnan(found.partial_spearman)
            else f"ρ is {found.partial_spearman:.2f}"
        )
        return f"given depth {given}, which depth alone explains (p = {found.p_value:.2f}, at most {SIGNIFICANCE} is asked for)"
    return None


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _sorted(found: list[CardMatch]) -> tuple[CardMatch, ...]:
    """Order matches and make the weights of those used sum to 1."""
    total = sum(match.weight for match in found)
    shares = [CardMatch(**vars(match) | {"weight": match.weight / total}) if match.weight else match for match in found]
    return tuple(sorted(shares, key=lambda m: (not m.matches, -2.0 if m.spearman is None else -m.spearman, m.card.key)))


def _allowed(option: Option, rules: TransferRules) -> bool:
    return min(option.layers) >= rules.min_entry and rules.count in (None, len(option.layers))


def _why(chosen: Option, used: list[CardMatch], query: CardQuery, rules: TransferRules) -> str:
    what = f"the regime `{chosen.name}` of these data" if chosen.by_score else f"`{chosen.name}`"
    many = f"{len(chosen.layers)} of {query.num_layers} layers"
    kept = f"kept {chosen.share_kept:.0%} of all-layer LoRA's gain in {_metrics(used)}"
    if len(used) > 1:
        kept += f" ({chosen.lowest_share_kept:.0%} at the least)"
    seconds = "" if chosen.step_seconds_ratio is None else f", a step {1 / chosen.step_seconds_ratio:.2f}x as fast,"
    floor = FLOORS[rules.prefer]
    short = "" if meets(chosen, rules.prefer) else f"; nothing that they tried kept {floor:.0%}, all-layer LoRA did"
    return f"{what}, {many}, which {kept}{seconds} on {_those_that_match(used)}{short}"


def _why_every(most: Option, used: list[CardMatch], rules: TransferRules) -> str:
    return (
        f"every layer, for nothing tried on {_those_that_match(used)} kept {WORTH[rules.prefer]:.0%} of all-layer LoRA's "
        f"gain in {_metrics(used)}; the most, {most.share_kept:.0%}, was kept by `{most.name}` with {len(most.layers)} layers"
    )


def _those_that_match(used: list[CardMatch]) -> str:
    on = "the Layer Card that matches" if len(used) == 1 else "the Layer Cards that match"
    return f"{on} ({'; '.join(f'{match.card.key}: {match.correlation()}' for match in used)})"


def _metrics(used: Sequence[CardMatch]) -> str:
    return " and ".join(sorted({match.card.main_metric for match in used}))


def _why_none(found: tuple[CardMatch, ...]) -> str:
    near = next((match for match in found if match.spearman is not None), None)
    if near is None:
        return "no measured Layer Card is of this model" if found else "there are no Layer Cards"
    return f"no Layer Card matches; the nearest, {near.card.key} ({near.correlation()}): {near.why_not}"


def _why_no_option(used: list[CardMatch], tried: tuple[Option, ...], rules: TransferRules) -> str:
    names = ", ".join(match.card.key for match in used)
    if not tried:
        return f"the Layer Cards that match ({names}) share no set of layers whose gain they know"
    asked = f"of {rules.count} layers" if rules.count is not None else ""
    above = f"from layer {rules.min_entry} up" if rules.min_entry else ""
    limits = " ".join(part for part in (asked, above) if part)
    return f"the Layer Cards that match ({names}) tried no set {limits}"
