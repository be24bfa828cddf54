"""What differs between two Layer Cards: fields, the order of the layers, and what each set of layers reached and cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from layercard.cards.card import LayerCard
from layercard.cards.correlation import spearman

APART = ("layers", "outcomes")
"""Compared by what they mean, not field by field."""


@dataclass(frozen=True)
class Difference:
    """A field that differs; None where a card does not have it."""

    where: str
    one: Any
    other: Any


@dataclass(frozen=True)
class Comparison:
    """Two cards beside each other."""

    fields: tuple[Difference, ...]
    outcomes: tuple[Difference, ...]
    """`where` is `<outcome>.<metric or cost or field>`."""
    spearman: Mapping[str, float]
    """By score that both hold for equally many layers: the correlation of the layers' orders."""
    changed_layers: tuple[int, ...]
    """The layers whose entries differ, where both cards have as many."""

    @property
    def same(self) -> bool:
        """Whether the cards say the same."""
        return not (self.fields or self.outcomes or self.changed_layers)


def compare(one: LayerCard, other: LayerCard) -> Comparison:
    """Return what differs between two cards."""
    here, there = one.document, other.document
    fields = [
        difference
        for key in sorted({*here, *there} - set(APART))
        for difference in _differences(here.get(key), there.get(key), key)
    ]
    rows, others = here["layers"], there["layers"]
    changed = [row["layer"] for row, twin in zip(rows, others, strict=False) if row != twin]
    if len(rows) != len(others):
        fields.append(Difference("layers", f"{len(rows)} layers", f"{len(others)} layers"))
        changed = []
    outcomes = _differences(_by_name(here), _by_name(there), "")
    return Comparison(tuple(fields), tuple(outcomes), _correlations(one, other), tuple(changed))


def _correlations(one: LayerCard, other: LayerCard) -> dict[str, float]:
    found = {}
    for score in sorted({*one.document["scorers"]} & {*other.document["scorers"]}):
        a, b = one.importance(score), other.importance(score)
        if a is not None and b is not None and len(a) == len(b) > 1:
            found[score] = spearman(a, b)
    return found


def _by_name(document: Mapping[str, Any]) -> dict[str, Any]:
    return {row["name"]: row for row in document["outcomes"]}


def _differences(one: Any, other: Any, where: str) -> Iterator[Difference]:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in sorted({*one, *other}):
            yield from _differences(one.get(key), other.get(key), f"{where}.{key}" if where else key)
    elif one != other:
        yield Difference(where, one, other)
