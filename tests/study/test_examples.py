from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from layercard.errors import DataError
from layercard.study.examples import content_digest, heldout_examples, layout_of, training_rows
from studies import BRIEF, question_data, rows, write_rows
from tiny import tiny_tokenizer


def test_a_seed_draws_its_own_rows_and_always_the_same(tmp_path: Path) -> None:
    data, tokenizer = question_data(tmp_path), tiny_tokenizer()
    first, again, other = (training_rows(data, tokenizer, "causal", BRIEF, seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert len(first) == BRIEF.steps * BRIEF.batch_size


def test_small_data_are_repeated_and_the_order_is_shuffled(tmp_path: Path) -> None:
    data = replace(question_data(tmp_path), train=write_rows(tmp_path / "few.jsonl", rows(4, 1)))
    drawn = training_rows(data, tiny_tokenizer(), "causal", BRIEF, 0)
    assert drawn[:2] == drawn[4:6]
    tokens = tiny_tokenizer()(rows(4, 1)[0]["prompt"])["input_ids"]
    assert any(row["input_ids"][: len(tokens)] == tokens for row in drawn)


def test_heldout_examples_do_not_depend_on_seeds(tmp_path: Path) -> None:
    data, tokenizer = question_data(tmp_path), tiny_tokenizer()
    first = heldout_examples(data, tokenizer, "causal", BRIEF)
    assert first == heldout_examples(data, tokenizer, "causal", replace(BRIEF, seeds=(7, 8)))
    for example in first:
        assert example.tokens == example.choices[example.answer or 0]
        assert example.references[1] == "so be it"


@pytest.mark.parametrize(
    ("change", "said"), [({"label": 3}, "`label` 3"), ({"label": "1"}, "`label` '1'"), ({"prompt": ""}, "empty prompt")]
)
def test_choices_that_cannot_be_judged_are_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    held = [row | change for row in rows(3, 2, heldout=True)]
    data = replace(question_data(tmp_path), heldout=write_rows(tmp_path / "bad.jsonl", held))
    with pytest.raises(DataError, match=said):
        heldout_examples(data, tiny_tokenizer(), "causal", BRIEF)


def test_nothing_to_predict_is_refused(tmp_path: Path) -> None:
    data, short = question_data(tmp_path), replace(BRIEF, max_length=3)
    with pytest.raises(DataError, match="max_length"):
        training_rows(data, tiny_tokenizer(), "causal", short, 0)
    with pytest.raises(DataError, match="token to predict"):
        heldout_examples(data, tiny_tokenizer(), "causal", short)


def test_columns_and_template_are_told(tmp_path: Path) -> None:
    assert layout_of(question_data(tmp_path), tiny_tokenizer()) == (
        {"prompt": "prompt", "completion": "completion"},
        None,
    )
    chat = [{"messages": [{"role": "user", "content": "hi"}]}]
    data = replace(question_data(tmp_path), train=write_rows(tmp_path / "chat.jsonl", chat))
    columns, template = layout_of(data, tiny_tokenizer())
    assert columns == {"messages": "messages"}
    assert template is not None and template.startswith("sha256:")


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    data = question_data(tmp_path)
    moved = Path(data.train).rename(tmp_path / "elsewhere.jsonl")
    assert content_digest(str(moved)) == content_digest(write_rows(tmp_path / "copy.jsonl", rows(40, 1)))
    assert content_digest(str(moved)) != content_digest(data.heldout)
    assert content_digest("someone/somewhere") is None
