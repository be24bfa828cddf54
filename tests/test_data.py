"""Datasets become probe batches: every file kind and format, what labels cover, and one clear error for bad data."""

from __future__ import annotations

import csv
import gzip
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from layercard import hookimpl
from layercard.data import IGNORED, ProbeData, probe_data, tokenize_records
from layercard.errors import DataError, SettingsError
from layercard.plugins import build_manager, extensions
from layercard.records import sample_records
from tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
ROWS = [{"prompt": f"question {i}? ", "completion": f"answer {i}"} for i in range(20)]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    text = "\n".join(json.dumps(row) for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    elif path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(str(path))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text(text)
    return str(path)


def read(tmp_path: Path, rows: list[dict[str, Any]], **options: Any) -> ProbeData:
    return probe_data(write(tmp_path / "data.jsonl", rows), TOKENIZER, **options)


def learned(data: ProbeData) -> list[str]:
    """The text under each example's labels."""
    rows = [row for batch in data.batches for row in batch["labels"]]
    return [TOKENIZER.decode(row[row != IGNORED]).replace(" ", "") for row in rows]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "jsonl.gz"])
def test_every_kind_of_file_gives_the_same_records(tmp_path: Path, kind: str) -> None:
    source = write(tmp_path / f"data.{kind}", ROWS)
    assert sample_records(source, count=100, seed=0) == ROWS


def test_a_folder_saved_by_datasets_is_read_with_its_split(tmp_path: Path) -> None:
    datasets.DatasetDict({"test": datasets.Dataset.from_list(ROWS)}).save_to_disk(str(tmp_path / "saved"))
    assert sample_records(str(tmp_path / "saved"), count=100, seed=0, split="test") == ROWS
    with pytest.raises(DataError, match=r"split 'train'"):
        sample_records(str(tmp_path / "saved"), count=100, seed=0)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_the_sample_is_deterministic_and_leaves_the_global_random_state_alone(tmp_path: Path, kind: str) -> None:
    source = write(tmp_path / f"data.{kind}", ROWS)
    before = random.getstate()
    first, again, other = (sample_records(source, count=5, seed=seed) for seed in (1, 1, 2))
    assert random.getstate() == before
    assert first == again != other
    assert [ROWS.index(row) for row in first] == sorted(ROWS.index(row) for row in first)


def test_the_sample_is_uniform(tmp_path: Path) -> None:
    source = write(tmp_path / "data.jsonl", ROWS)
    drawn = [ROWS.index(row) for seed in range(400) for row in sample_records(source, count=5, seed=seed)]
    counts = torch.bincount(torch.tensor(drawn), minlength=len(ROWS)).double()
    chi_squared = float(((counts - 100) ** 2 / 100).sum())
    assert chi_squared < 43.8  # 0.1% point of 19 degrees of freedom


def test_only_the_completion_is_learned(tmp_path: Path) -> None:
    data = read(tmp_path, ROWS)
    assert learned(data) == [f"answer{i}<eos>" for i in range(20)]


def test_messages_are_learned_whole_through_the_chat_template(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    assert learned(read(tmp_path, [{"messages": messages}])) == ["user:hi<eos>assistant:ho<eos>"]
    split = {"prompt": messages[:1], "completion": messages[1:]}
    assert learned(read(tmp_path, [split])) == ["ho<eos>"]


def test_text_is_learned_whole_and_ended_once(tmp_path: Path) -> None:
    assert learned(read(tmp_path, [{"text": "abc"}, {"text": "de<eos>"}])) == ["abc<eos>", "de<eos>"]


def test_columns_may_play_other_parts(tmp_path: Path) -> None:
    rows = [{"question": "q?", "answer": "a", "text": "unused"}]
    columns = {"prompt": "question", "completion": "answer"}
    assert learned(read(tmp_path, rows, columns=columns)) == ["a<eos>"]
    assert learned(read(tmp_path, rows)) == ["unused<eos>"]


def test_padding_is_masked_even_where_it_is_the_eos_token(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    source = write(tmp_path / "data.jsonl", [{"text": "abcdef"}, {"text": "a"}])
    (batch,) = probe_data(source, tokenizer).batches
    assert batch["attention_mask"].tolist() == [[1] * 7, [1, 1] + [0] * 5]
    assert batch["labels"][1].tolist() == [*batch["input_ids"][1, :2].tolist(), *[IGNORED] * 5]


def test_batches_hold_every_example_once_in_order(tmp_path: Path) -> None:
    data = read(tmp_path, ROWS, examples=20, batch_size=8)
    assert [len(batch["input_ids"]) for batch in data.batches] == [8, 8, 4]
    assert (data.examples, data.skipped) == (20, 0)


def test_examples_with_nothing_left_to_learn_are_skipped_and_counted(tmp_path: Path) -> None:
    rows = [{"prompt": "x" * 30, "completion": "never seen"}, {"prompt": "x", "completion": "seen"}]
    data = read(tmp_path, rows, max_length=10)
    assert (data.examples, data.skipped) == (1, 1)
    assert data.batches[0]["input_ids"].shape[1] <= 10
    with pytest.raises(DataError, match=r"None of the 1 examples.*`max_length`"):
        read(tmp_path, rows[:1], max_length=10)


def test_a_classifier_gets_one_label_an_example(tmp_path: Path) -> None:
    data = read(tmp_path, [{"text": "good", "label": 1}, {"text": "bad", "label": 0}], task="classification")
    assert data.batches[0]["labels"].tolist() == [1, 0]
    named = [{"text": "good", "label": "positive"}, {"text": "bad", "label": "negative"}]
    assert read(tmp_path, named, task="classification").batches[0]["labels"].tolist() == [1, 0]


def test_a_masked_model_learns_exactly_the_hidden_tokens(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "~"})
    text = "the quick brown fox jumps over the lazy dog"
    (batch,) = probe_data(write(tmp_path / "data.jsonl", [{"text": text}]), tokenizer, task="masked").batches
    hidden = batch["input_ids"] == tokenizer.mask_token_id
    assert hidden.sum() == round(0.15 * len(text))
    assert torch.equal(hidden, batch["labels"] != IGNORED)
    whole = torch.where(hidden, batch["labels"], batch["input_ids"])
    assert whole[0].tolist() == tokenizer(text)["input_ids"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jsonl", "", r"is empty"),
        ("empty.json", "[]", r"is empty"),
        ("empty.csv", "text\n", r"is empty"),
        ("broken.jsonl", '{"text": "a"}\n{"text": ', r"line 2 is not JSON"),
        ("list.jsonl", "[1, 2]", r"item 0 is a int"),
        ("number.jsonl", "1", r"line 1 is a int"),
        ("ragged.csv", "a,b\n1,2,3\n", r"line 2 has not as many fields as the header"),
        ("broken.parquet", "PAR?", r"cannot be read as Parquet"),
        ("broken.jsonl.gz", "not gzip", r"cannot be read"),
        ("twice.csv", "text,text\na,b\n", r"has the column `text` 2 times"),
        ("semicolons.csv", "prompt;completion\na;b\n", r"separated by semicolons"),
        ("object.json", json.dumps({"data": [{"text": "a"}]}, indent=1), r"one JSON object over several lines.*`data`"),
        ("one.json", json.dumps({"text": "a"}, indent=1), r"one JSON object over several lines.*on one line"),
        ("wrapped.json", '{"version": "1", "data": [{"text": "a"}]}', r"Where `data` holds the rows, write that list"),
        ("data.xlsx", "", r"no known kind.*`\.jsonl`"),
        ("latin.jsonl", b'{"text": "\xe9"}', r"cannot be read"),
        (
            "columns.jsonl",
            '{"foo": "a", "bar": "b"}',
            r"columns `foo`, `bar`.*`prompt` and `completion`.*--column",
        ),
        ("type.jsonl", '{"text": 3}', r"`text` is 3.*needs a string"),
        ("later.jsonl", '{"text": "a"}\n{"body": "b"}', r"`text` is None.*needs a string"),
        ("messages.jsonl", '{"messages": ["a"]}', r"needs a list of messages with `role`"),
        (
            "mixed.jsonl",
            '{"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]}',
            r"Give both alike",
        ),
    ],
)
def test_bad_data_are_one_clear_error(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message) as caught:
        probe_data(str(path), TOKENIZER)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["data.JSONL", "data.Csv"])
def test_blank_lines_above_and_capital_endings_are_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text('\n\n{"text": "a"}\n' if "J" in name else "\n\ntext\na\n")
    (record,) = sample_records(str(path), count=3, seed=0)
    assert (record["text"], record.place) == ("a", f"{path}, line {3 if 'J' in name else 4}")


def test_a_saved_folder_names_its_splits(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list([{"text": "a"}])
    datasets.DatasetDict({"validation": rows}).save_to_disk(tmp_path)
    with pytest.raises(DataError, match=r"no split 'train'. It has `validation`\."):
        sample_records(str(tmp_path), count=1, seed=0)


def test_several_files_are_told_to_be_one_folder() -> None:
    with pytest.raises(DataError, match=r"from the folder that holds them"):
        probe_data("some/*.jsonl", TOKENIZER)


@pytest.mark.parametrize("source", ["nowhere.jsonl", "./nowhere", "/no/where", "a/b/c"])
def test_a_missing_file_is_not_looked_for_on_the_hub(source: str) -> None:
    with pytest.raises(DataError, match="does not exist"):
        probe_data(source, TOKENIZER)


def test_unknown_columns_and_parts_suggest_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column 'txt'.*Did you mean `text`\?"):
        read(tmp_path, [{"text": "a"}], columns={"text": "txt"})
    with pytest.raises(SettingsError, match=r"part 'promt'.*Did you mean `prompt`\?"):
        read(tmp_path, [{"text": "a"}], columns={"promt": "text"})


def test_messages_without_a_chat_template_say_what_to_do(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    source = write(tmp_path / "data.jsonl", [{"messages": [{"role": "user", "content": "hi"}]}])
    with pytest.raises(DataError, match="no chat template"):
        probe_data(source, tokenizer)


def test_examples_that_a_plugin_takes_alone_and_not_together_are_one_clear_error() -> None:
    class Plugin:
        @staticmethod
        @hookimpl
        def tokenize_examples(tokenizer: Any, examples: list[dict[str, Any]]) -> list[dict[str, list[int]]]:
            (_only,) = examples
            return [{"input_ids": [5], "labels": [5]}]

    tokenize = extensions(build_manager([("mine", Plugin)], entry_points=False)).tokenize_examples
    assert tokenize_records([{"text": "a"}], TOKENIZER, tokenize=tokenize) == [{"input_ids": [5], "labels": [5]}]
    with pytest.raises(DataError, match=r"taken alone and not together: too many values"):
        tokenize_records([{"text": "a"}, {"text": "b"}], TOKENIZER, tokenize=tokenize)


def test_without_datasets_the_error_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['datasets'] = None\n"
        "from layercard.errors import DataError\n"
        "from layercard.records import sample_records\n"
        "try: sample_records('owner/name', count=1, seed=0)\n"
        "except DataError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'layercard[cli]'" in done.stdout
