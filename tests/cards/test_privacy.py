"""What must not be shared is found in any field; redacted text passes."""

from __future__ import annotations

import pytest

from card_documents import measured
from layercard.cards.privacy import leaks, redact
from layercard.cards.schema import problems

PRIVATE = {
    "/home/ada/data/train.jsonl": "a path from the root",
    "--data=/mnt/disk/x": "a path from the root",
    "read from '/srv/models/tiny'": "a path from the root",
    "/root": "a path from the root",
    "C:\\Users\\ada\\x": "a path from the root",
    "D:/data": "a path from the root",
    "\\\\server\\share": "a path from the root",
    "file:///data/x": "a path from the root",
    "--out ~/runs": "a home directory",
    "~ada/runs": "a home directory",
    "hf_" + "a1B2" * 6: "an access token",
    "HF_TOKEN=abcdefgh": "an access token",
    "ghp_" + "x" * 20: "an access token",
    "api_key: 12345678": "an access token",
    "https://ada:secret@host/x": "credentials",
    "ada.lovelace@example.org": "an e-mail address",
    "red \x1b[31m": "a control character",
    "\u202egnp.exe": "a control character",
    "half a pair \ud800": "a control character",
}
HARMLESS = [
    "0.91 steps/s",
    "layercard cards build org/model --data e2e/train.csv",
    "https://arxiv.org/abs/2504.00001",
    "Question: {question}\n\tAnswer:\n",
    "and/or, 1/2, a / b",
    "accuracy at 16:30",
    "ratio 3:/4",
    "~30 layers",
    "max_tokens: 1024",
    "x @ y",
    "risk-free-sk-learn",
    "the token count = 3",
    "{{ bos_token + message }}{% set eos_token = message_end %}</think>\n/no_think",
]


@pytest.mark.parametrize(("text", "what"), PRIVATE.items())
def test_private_text_is_named_with_its_field(text: str, what: str) -> None:
    document = measured(later={"deep": [text]})
    assert ("later.deep[0]", what) in set(leaks(document))
    assert any("`later.deep[0]` holds" in line for line in problems(document))


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_text_passes(text: str) -> None:
    assert list(leaks({"note": text})) == []


def test_keys_are_looked_at_too() -> None:
    assert list(leaks({"a": {"/home/ada/x": 1}})) == [("a", "a path from the root")]


@pytest.mark.parametrize("text", PRIVATE)
def test_redacted_text_passes(text: str) -> None:
    assert list(leaks({"command": redact(f"run {text} --rank 8")})) == []
    assert list(leaks({"command": redact(text)})) == []
    assert redact(f"run {text} --rank 8").startswith("run ")


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_text_is_left_as_it_is(text: str) -> None:
    assert redact(text) == text


def test_redaction_keeps_the_last_part_of_a_path_and_takes_out_names() -> None:
    command = "/opt/venv/bin/layercard cards build ~/models/tiny --data /home/ada/e2e.csv --by ada"
    assert redact(command, ["ada"]) == "layercard cards build tiny --data e2e.csv --by …"
