"""Card files that nobody vouches for: only `CardError` escapes, and a card that is accepted can be used everywhere."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from card_documents import measured, published
from layercard.cards.card import LayerCard
from layercard.cards.comparison import compare
from layercard.cards.reading import read_card
from layercard.cards.transfer import TransferRules, transfer
from layercard.cards.writing import card_text
from layercard.cli.cards.tables import layers_table, others_table, outcomes_table, shown_scores
from layercard.cli.cards.words import summary
from layercard.errors import CardError
from layercard.pipeline.before.consulting import placement_from
from layercard.settings import PlacementSettings
from transfer_cards import DEPTHWISE, query, reference

show, diff, matching = (import_module(f"layercard.cli.cards.{name}") for name in ("show", "diff", "matching"))
DEPTHWISE_KEPT = dict.fromkeys(DEPTHWISE, (0.95, 0.6))
SOUND = [measured(), published(), reference(), reference("words", depthwise=DEPTHWISE_KEPT)]
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, 1, 12, -1, 1e308, -1e308, 5e-324, 2**63, 10**400])
LEAVES = st.none() | st.booleans() | NUMBERS | st.text(max_size=8) | st.sampled_from(["[red]", "[/]", "\n", "high"])
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)


def places(value: Any, *before: Any) -> Iterator[tuple[Any, ...]]:
    """Paths of all that is inside a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*before, key)
        yield from places(item, *before, key)


@st.composite
def changed(draw: st.DrawFn) -> Any:
    """A sound card in which a few fields are gone, doubled, new, or hold something else, most often of their own kind."""
    document = copy.deepcopy(draw(st.sampled_from(SOUND)))
    for _ in range(draw(st.integers(1, 4))):
        path = draw(st.sampled_from(list(places(document)) or [()]))
        if not path:
            return draw(VALUES)
        room = document
        for key in path[:-1]:
            room = room[key]
        change(draw, room, path[-1])
    return document


def change(draw: st.DrawFn, room: Any, key: Any) -> None:
    """Change what stands under `key`."""
    kinds: dict[type, st.SearchStrategy[Any]] = {
        str: st.text(max_size=8),
        float: NUMBERS,
        int: NUMBERS,
        list: st.just(room[key] * 2 if isinstance(room[key], list) else None),
    }
    how = draw(st.sampled_from(["kind", "kind", "kind", "any", "gone", "new"]))
    if how == "gone":
        del room[key]
    elif how == "new" and isinstance(room, dict):
        room[draw(st.text(max_size=5))] = draw(VALUES)
    elif how == "new":
        room.append(copy.deepcopy(room[key]))
    else:
        room[key] = draw(VALUES if how == "any" else kinds.get(type(room[key]), VALUES))


def use(card: LayerCard) -> None:
    """All that `cards list`, `show`, `diff` and `match` and a run make of a card."""
    console = Console(file=io.StringIO(), width=80)
    for line in show._about(card):
        console.print(line, markup=False)
    json.dumps(summary(card), allow_nan=False)
    layers = layers_table(card, shown_scores(card, console.width)) if card.document["layers"] else None
    for table in (outcomes_table(card), others_table(card), layers):
        console.print(table or "")
    for document in SOUND:
        other = LayerCard(document, "sound.json")
        found = compare(card, other)
        assert compare(card, card).same
        for rows in (found.fields, found.outcomes):
            console.print(diff._table("differs", rows, "one", "other"))
    console.print(matching._matches_table(transferred(card, console)))


def transferred(card: LayerCard, console: Console) -> Any:
    """Ask the card, beside a sound one, for layers in both of the ways that it may be let in."""
    sound = LayerCard(SOUND[3], "sound.json")
    for prefer in ("quality", "balanced", "speed"):
        for cards in ([card], [card, sound]):
            choice = transfer(cards, query(), TransferRules(min_spearman=0.0, community=True, prefer=prefer))
            json.dumps([match.to_dict() for match in choice.matches], allow_nan=False)
            json.dumps(choice.expected(), allow_nan=False)
            if choice.options:
                console.print(matching._options_table(choice))
            placement = placement_from(choice, 12, PlacementSettings.from_user("auto", prefer=prefer))
            if placement is not None:
                assert placement.layers
                assert set(placement.layers) <= set(range(12))
                json.dumps(placement.to_dict(), allow_nan=False)
    return choice.matches


def read(path: Path) -> LayerCard | None:
    """The card, None where it is refused in one line that names the file; anything but `CardError` escapes."""
    try:
        return read_card(path)
    except CardError as error:
        said = str(error)
    assert said.startswith("card.json: ")
    assert "\n" not in said
    return None


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cards") / "card.json"


@pytest.mark.parametrize("document", SOUND)
def test_sound_cards_can_be_used(document: Any, path: Path) -> None:
    path.write_text(card_text(document))
    card = read(path)
    assert card is not None
    use(card)


@settings(deadline=None, max_examples=examples(250))
@given(changed())
def test_what_is_accepted_can_be_used(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document), encoding="utf-8")
    card = read(path)
    if card is not None:
        use(card)
        path.write_text(card_text(card.document), encoding="utf-8")
        assert read(path) == card


@settings(deadline=None, max_examples=examples())
@given(st.data())
def test_damaged_bytes_are_read_or_refused(path: Path, data: st.DataObject) -> None:
    content = bytearray(json.dumps(data.draw(st.sampled_from(SOUND))).encode())
    damage = st.binary(max_size=3) | st.sampled_from([b"0", b'"', b"}", b"e9"])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 3))] = data.draw(damage)
    path.write_bytes(bytes(content))
    card = read(path)
    if card is not None:
        use(card)
