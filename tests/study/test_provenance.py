from __future__ import annotations

from pathlib import Path

import pytest

from layercard.cards.privacy import leaks
from layercard.study.provenance import provenance, redacted


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("/home/someone/models/tiny", "tiny"),
        ("~/models/tiny", "tiny"),
        ("../secret-project/train.jsonl", "train.jsonl"),
        ("--dataset=/data/private/train.jsonl", "--dataset=train.jsonl"),
        ("some/where/deep.jsonl", "deep.jsonl"),
        ("org/model", "org/model"),
        ("--steps", "--steps"),
        ("0.001", "0.001"),
        ("prompt=question", "prompt=question"),
    ],
)
def test_paths_are_reduced_to_their_last_name(word: str, shown: str) -> None:
    assert redacted(["layercard", word]) == f"layercard {shown}"


def test_an_existing_folder_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "private" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert redacted(["private/model"]) == "model"


def test_secrets_are_taken_out_and_nothing_is_left_that_a_card_may_not_hold() -> None:
    words = [
        "layercard",
        "hf_abcdefghijklmnopqrst",
        "https://me:word@host/data",
        "/home/me/x y.jsonl",
        "me@example.org",
    ]
    origin = provenance(words)
    assert list(leaks(origin)) == []
    for secret in ("abcdefgh", "word@", "/home", "example.org"):
        assert secret not in origin["command"]


def test_versions_machine_and_date_are_said() -> None:
    origin = provenance(None)
    assert origin["kind"] == "measured"
    assert {"layercard", "torch", "transformers", "peft"} <= set(origin["versions"])
    assert origin["hardware"]["threads"] >= 1
    assert origin["command"] is None
