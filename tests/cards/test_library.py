"""The library: cards of every folder by key, each that was refused by name, one card a key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from card_documents import measured, published
from layercard import hookimpl
from layercard.cards.card import LayerCard
from layercard.cards.library import Library, default_user_dir, save_card, shipped_dir, user_path
from layercard.cards.writing import card_text
from layercard.errors import CardError, PluginError
from layercard.plugins import build_manager, card_folders


def put(folder: Path, *documents: dict[str, Any]) -> Path:
    for document in documents:
        card = LayerCard(document, "test")
        save_card(card, folder / f"{card.key}.json")
    return folder


def providing(*folders: Any) -> Any:
    """Return a plugin that provides these folders of cards."""

    class Plugin:
        @staticmethod
        @hookimpl
        def provide_cards() -> list[Any]:
            return list(folders)

    return Plugin


def test_cards_come_from_layercard_plugins_and_the_user(tmp_path: Path) -> None:
    manager = build_manager([("mine", providing(put(tmp_path / "a", measured())))], entry_points=False)
    library = Library.open(card_folders(manager), user_dir=put(tmp_path / "b", published()))
    sources = {card.key: card.source for card in library.cards}
    assert sources["tiny/numbers"] == "mine:tiny/numbers.json"
    assert sources["tiny/words"] == "user:tiny/words.json"
    assert {path.parent.name + "/" + path.stem for path in shipped_dir().glob("*/*.json")} == {
        key for key, source in sources.items() if source.startswith("layercard:")
    }
    assert list(sources) == sorted(sources)


def test_a_missing_folder_is_empty(tmp_path: Path) -> None:
    assert Library.of([("user", tmp_path / "none")]) == Library()


def test_every_refused_file_is_named_and_the_rest_loads(tmp_path: Path) -> None:
    put(tmp_path, measured(), published())
    (tmp_path / "tiny" / "broken.json").write_text("{")
    (tmp_path / "tiny" / "later.json").write_text('{"schema_version": 9}')
    (tmp_path / "tiny" / "link.json").symlink_to("/etc/hostname")
    (tmp_path / "notes.txt").write_text("no card")
    (tmp_path / ".hidden.json").write_text("{")
    library = Library.of([("user", tmp_path)])
    assert [card.key for card in library.cards] == ["tiny/numbers", "tiny/words"]
    assert [source for source, _ in library.rejected] == [
        "user:tiny/broken.json",
        "user:tiny/later.json",
        "user:tiny/link.json",
    ]
    assert all(reason.startswith(f"{source}: ") for source, reason in library.rejected)
    with pytest.raises(CardError, match=r"`tiny/later` cannot be used: .*`schema_version` is 9"):
        library.named("tiny/numbers", "tiny/later")
    assert library.named("tiny/numbers", "tiny/words") == library.cards


def test_two_cards_for_one_key_that_disagree_are_both_refused(tmp_path: Path) -> None:
    other = measured(model="another/tiny")
    one, two = put(tmp_path / "one", measured(), published()), put(tmp_path / "two", other)
    library = Library.of([("one", one), ("two", two)])
    assert [card.key for card in library.cards] == ["tiny/words"]
    assert [source for source, _ in library.rejected] == ["one:tiny/numbers.json", "two:tiny/numbers.json"]
    for _, reason in library.rejected:
        assert "one:tiny/numbers.json and two:tiny/numbers.json: two cards for `tiny/numbers` that disagree" in reason
    with pytest.raises(CardError, match="that disagree"):
        library.named("tiny/numbers")


def test_two_cards_that_say_the_same_count_once(tmp_path: Path) -> None:
    one, two = put(tmp_path / "one", measured()), put(tmp_path / "two", measured())
    library = Library.of([("one", one), ("two", two)])
    assert [card.source for card in library.cards] == ["one:tiny/numbers.json"]
    assert library.rejected == ()


def test_a_card_is_found_by_key_or_path_and_an_unknown_name_suggests_the_nearest(tmp_path: Path) -> None:
    library = Library.of([("user", put(tmp_path, measured()))])
    assert library.get("tiny/numbers") is library.cards[0]
    assert library.get("tiny/none") is None
    (from_path,) = library.named(str(tmp_path / "tiny" / "numbers.json"))
    assert from_path.document == measured()
    with pytest.raises(CardError, match=r"no Layer Card `tiny/number`.*Did you mean `tiny/numbers`"):
        library.named("tiny/number")
    with pytest.raises(CardError, match="no such file"):
        library.named("elsewhere.json")


def test_a_plugin_that_provides_no_folder_is_named() -> None:
    manager = build_manager([("mine", providing("cards"))], entry_points=False)
    with pytest.raises(PluginError, match=r"`mine` answers `provide_cards` with 'cards'"):
        Library.open(card_folders(manager))


def test_the_users_folder_follows_the_variable_and_the_platform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAYERCARD_CARDS", str(tmp_path))
    assert default_user_dir() == tmp_path
    assert user_path(LayerCard(measured(), "")) == tmp_path / "tiny" / "numbers.json"
    put(tmp_path, measured())
    assert Library.open(card_folders(build_manager(entry_points=False))).get("tiny/numbers") is not None
    monkeypatch.delenv("LAYERCARD_CARDS")
    assert default_user_dir().parts[-2:] == ("layercard", "cards")
    assert default_user_dir().is_absolute()


def test_a_link_to_a_folder_is_refused_alone(tmp_path: Path) -> None:
    put(tmp_path, measured())
    (tmp_path / "odd.json").symlink_to(tmp_path / "tiny")
    library = Library.of([("user", tmp_path)])
    assert [card.key for card in library.cards] == ["tiny/numbers"]
    assert [source for source, _ in library.rejected] == ["user:odd.json"]


def test_the_views_of_a_card_say_what_its_document_says() -> None:
    card = LayerCard(measured(), "")
    assert card.share_kept("mid") == pytest.approx(0.6 / 0.7)
    assert card.gain("untuned") == 0
    assert card.outcomes["high"].layers == (0, 1)
    assert card_text(card.document) == card_text(measured())
    paper = LayerCard(published(), "")
    assert paper.targets == frozenset()
    assert paper.gain("mid") is None
