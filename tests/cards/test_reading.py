"""Reading files that nobody vouches for: each hostile one is refused by name and reason, quickly."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from card_documents import measured
from layercard.cards.card import LayerCard
from layercard.cards.reading import MAX_BYTES, card_files, parse, read_card
from layercard.cards.schema import check_card
from layercard.cards.writing import card_text, save_card
from layercard.errors import CardError

GOOD = card_text(measured())


def nan(text: str) -> str:
    return text.replace('"importance": 4.0', '"importance": NaN')


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "no JSON": (lambda: b"{", "not JSON"),
    "empty": (lambda: b"", "not JSON"),
    "no text": (lambda: b"\xff\xfe\x00", "not UTF-8"),
    "NaN": (lambda: nan(GOOD).encode(), "NaN, which is not a finite number"),
    "infinity": (lambda: b'{"a": -Infinity}', "-Infinity"),
    "overflow": (lambda: GOOD.replace('"alpha": 16', '"alpha": 1e999').encode(), "`lora.alpha` is not a finite number"),
    "a key twice": (lambda: GOOD.replace('"status"', '"license": "MIT", "status"').encode(), "`license` stands twice"),
    "100 MB": (lambda: b" " * 100_000_000 + b"{}", "100,000,002 bytes"),
    "deep lists": (lambda: b"[" * 1_000_000, "nested more than 16 deep"),
    "deep objects": (lambda: b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested more than 16 deep"),
    "endless escapes": (lambda: b'{"' + b'\\"' * 1_000_000, "not JSON"),
    "many open quotes": (lambda: b'"' * 1_000_001, "not JSON"),
    "a long number": (lambda: b'{"a": ' + b"9" * 100_000 + b"}", "not JSON|finite"),
    "a list": (lambda: b"[]", "a Layer Card is a JSON object"),
    "a later version": (lambda: GOOD.replace('"schema_version": 1', '"schema_version": 2').encode(), "is 2, and this"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.timeout(20)
def test_hostile_files_are_refused_by_name_and_reason(name: str, tmp_path: Path) -> None:
    content, reason = HOSTILE[name]
    path = tmp_path / "card.json"
    path.write_bytes(content())
    with pytest.raises(CardError, match=reason) as caught:
        read_card(path)
    assert str(caught.value).startswith("card.json: ")
    assert "\n" not in str(caught.value)


def test_what_lies_outside_or_is_no_file_is_refused(tmp_path: Path) -> None:
    folder, outside = tmp_path / "library", tmp_path / "secret.json"
    folder.mkdir()
    outside.write_text(GOOD)
    (folder / "link.json").symlink_to(outside)
    (folder / "circle.json").symlink_to(folder / "circle.json")
    (folder / "linked").symlink_to(tmp_path, target_is_directory=True)
    (folder / "folder.json").mkdir()
    os.mkfifo(folder / "pipe.json")
    for name, reason in {
        "link.json": "leads out of the folder",
        "circle.json": "cannot be read",
        "linked": "leads out of the folder",
        "pipe.json": "not a file",
        "none.json": "no such file",
    }.items():
        with pytest.raises(CardError, match=reason):
            read_card(folder / name, folder=folder)
    assert [path.name for path in card_files(folder)] == ["circle.json", "link.json", "linked", "pipe.json"]


def test_a_link_within_the_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(GOOD)
    (tmp_path / "b.json").symlink_to(tmp_path / "a.json")
    assert read_card(tmp_path / "b.json", folder=tmp_path).document == measured()


def test_the_largest_allowed_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    path.write_text(GOOD + " " * (MAX_BYTES - len(GOOD.encode())))
    assert read_card(path).document == measured()


def test_brackets_in_texts_are_no_depth() -> None:
    assert parse(json.dumps({"a": "[" * 100 + '\\"{'}), "x") == {"a": "[" * 100 + '\\"{'}


def test_a_card_survives_the_round_trip_and_so_do_unknown_fields(tmp_path: Path) -> None:
    document = measured(later={"ü": [1.5, None, {"b": "c"}]}, empty={}, none=[])
    path = tmp_path / "new" / "card.json"
    save_card(LayerCard(document, "a"), path)
    again = read_card(path)
    assert again.document == document
    assert again.source == "card.json"
    before = path.read_bytes()
    save_card(again, path)
    assert path.read_bytes() == before


def test_the_text_is_sorted_with_a_layer_a_line() -> None:
    backwards = dict(reversed(measured().items()))
    assert card_text(backwards) == GOOD
    keys = [line.split('"')[1] for line in GOOD.splitlines() if line.startswith('  "')]
    assert keys == sorted(keys)
    layers = [json.loads(line.rstrip(",")) for line in GOOD.splitlines() if '"layer":' in line]
    assert layers == measured()["layers"]


def test_one_changed_layer_is_one_changed_line() -> None:
    document = measured()
    document["layers"][2]["scores"]["resnorm"]["raw"] = 4.25
    pairs = zip(GOOD.splitlines(), card_text(document).splitlines(), strict=True)
    assert [new for old, new in pairs if old != new] == [
        '    {"effective_rank": null, "energy": {"q_proj": 1.0, "v_proj": 2.0}, "layer": 2, '
        '"scores": {"resnorm": {"importance": 4.0, "raw": 4.25}}},'
    ]


def test_what_is_no_card_is_never_written(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    path.write_text("before")
    for document in (measured(layers=[]), measured(later=float("nan")), measured(later="/home/ada/x")):
        with pytest.raises(CardError):
            save_card(LayerCard(document, "a"), path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    (path / "in the way").mkdir(parents=True)
    with pytest.raises(OSError, match=r"card\.json"):
        save_card(LayerCard(measured(), "a"), path)
    assert list(tmp_path.iterdir()) == [path]
    assert [inside.name for inside in path.iterdir()] == ["in the way"]


def refusal(text: str) -> str:
    """Return why a text is no card, or nothing."""
    try:
        check_card(parse(text, "x"), "x")
    except CardError as error:
        return str(error)
    return ""


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet='{}[]",:\\ntrue0123456789.eE-NaI\n ', max_size=60) | st.text(max_size=40))
def test_any_text_is_refused_with_a_card_error(text: str) -> None:
    assert refusal(text).startswith("x: ")


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.characters())
def test_a_card_with_one_character_changed_is_valid_or_a_card_error(place: int, character: str) -> None:
    reason = refusal(GOOD[:place] + character + GOOD[place + 1 :])
    assert not reason or reason.startswith("x: ")
