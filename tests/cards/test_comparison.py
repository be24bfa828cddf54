"""Comparing two cards: nothing between a card and itself, something wherever one field differs."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from card_documents import measured, published
from layercard.cards.card import LayerCard
from layercard.cards.comparison import compare


def card(document: dict[str, Any]) -> LayerCard:
    return LayerCard(document, "a")


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value that holds no others."""
    if isinstance(value, dict | list) and value:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, (*path, key))
    else:
        yield path


@pytest.mark.parametrize("document", [measured(), published()], ids=["measured", "published"])
def test_a_card_is_the_same_as_itself_and_differs_wherever_a_field_does(document: dict[str, Any]) -> None:
    assert compare(card(document), card(copy.deepcopy(document))).same
    for path in leaves(document):
        other = copy.deepcopy(document)
        parent: Any = other
        for key in path[:-1]:
            parent = parent[key]
        if path[-1] == "layer" or path[-1] == "importance":
            parent[path[-1]] += 1
        else:
            parent[path[-1]] = "changed"
        assert not compare(card(document), card(other)).same, path
        assert not compare(card(other), card(document)).same, path


def test_reversed_layers_correlate_perfectly_the_other_way() -> None:
    found = compare(card(measured()), card(measured(resnorm=(1.0, 2.0, 3.5, 4.0, 5.0, 6.0))))
    assert found.spearman["resnorm"] == pytest.approx(-1)
    assert found.changed_layers == (0, 1, 2, 3, 4, 5)


def test_cards_of_different_depth_say_so_and_correlate_nothing() -> None:
    found = compare(card(measured()), card(measured(resnorm=(3.0, 2.0, 1.0))))
    assert {row.where for row in found.fields} == {"layers", "model.num_layers"}
    assert found.spearman == {}
    assert found.changed_layers == ()


def test_fields_that_one_card_lacks_are_null_there() -> None:
    found = compare(card(measured()), card(measured(later={"deep": 1})))
    assert [(row.where, row.one, row.other) for row in found.fields] == [("later", None, {"deep": 1})]
