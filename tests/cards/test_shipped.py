"""Every card that is shipped is valid, lies where its key says, and is written as cards are written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from layercard.cards.library import Library, shipped_dir
from layercard.cards.reading import card_files, read_card
from layercard.cards.writing import card_text

FILES = sorted(card_files(shipped_dir()))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_shipped_card_is_valid_in_its_place_and_in_canonical_form(path: Path) -> None:
    card = read_card(path, folder=shipped_dir())
    assert path == shipped_dir() / f"{card.key}.json"
    assert path.read_text(encoding="utf-8") == card_text(json.loads(path.read_text(encoding="utf-8")))
    assert not card.document.get("quick"), "a smoke card is not shipped"


def test_the_shipped_library_loads_whole() -> None:
    library = Library.of([("layercard", shipped_dir())])
    assert library.rejected == ()
    assert len(library.cards) == len(FILES) >= 17
