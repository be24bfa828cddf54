"""Adding cards to the user's folder: all or none, and one card a key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from card_documents import measured, published
from layercard import hookimpl
from layercard.cards.adding import add_cards
from layercard.cards.card import LayerCard
from layercard.cards.library import Library, save_card
from layercard.errors import CardError
from layercard.plugins import build_manager, card_folders


def card(document: dict[str, Any]) -> LayerCard:
    return LayerCard(document, "given.json")


def files(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*.json")}


@pytest.fixture
def folders() -> Any:
    return card_folders(build_manager(entry_points=False))


def test_added_cards_are_in_the_library(tmp_path: Path, folders: Any) -> None:
    placed = add_cards([card(measured()), card(published())], folders, user_dir=tmp_path)
    assert placed == [tmp_path / "tiny" / "numbers.json", tmp_path / "tiny" / "words.json"]
    library = Library.of([("user", tmp_path)])
    assert [found.document for found in library.cards] == [measured(), published()]


def test_one_that_is_no_card_keeps_all_out(tmp_path: Path, folders: Any) -> None:
    with pytest.raises(CardError):
        add_cards([card(measured()), card(measured(layers=[], dataset="b"))], folders, user_dir=tmp_path)
    assert files(tmp_path) == {}


def test_a_broken_file_in_the_way_is_replaced_only_when_told(tmp_path: Path, folders: Any) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "numbers.json").write_text("{")
    with pytest.raises(CardError, match="`--replace` replaces it"):
        add_cards([card(measured())], folders, user_dir=tmp_path)
    assert files(tmp_path) == {"tiny/numbers.json": "{"}
    add_cards([card(measured())], folders, replace=True, user_dir=tmp_path)
    assert Library.of([("user", tmp_path)]).rejected == ()


def test_a_link_in_the_way_is_replaced_and_not_written_through(tmp_path: Path, folders: Any) -> None:
    outside = tmp_path / "outside.json"
    outside.write_text("precious")
    own = tmp_path / "own"
    (own / "tiny").mkdir(parents=True)
    (own / "tiny" / "numbers.json").symlink_to(outside)
    add_cards([card(measured())], folders, replace=True, user_dir=own)
    assert outside.read_text() == "precious"
    assert not (own / "tiny" / "numbers.json").is_symlink()


def test_a_plugins_card_cannot_be_contradicted(tmp_path: Path) -> None:
    provided = tmp_path / "provided"
    save_card(card(measured()), provided / "tiny" / "numbers.json")

    class Plugin:
        @staticmethod
        @hookimpl
        def provide_cards() -> list[Path]:
            return [provided]

    folders = card_folders(build_manager([("mine", Plugin)], entry_points=False))
    own = tmp_path / "own"
    with pytest.raises(CardError, match=r"mine:tiny/numbers\.json is another card for `tiny/numbers`"):
        add_cards([card(measured(later=1))], folders, replace=True, user_dir=own)
    add_cards([card(measured())], folders, user_dir=own)  # the same is no contradiction
    assert list(files(own)) == ["tiny/numbers.json"]
