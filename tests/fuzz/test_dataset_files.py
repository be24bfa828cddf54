"""Whatever a dataset file holds, reading and tokenizing it raises layercard's own errors alone."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any, get_args

import pytest
from effort import examples
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from layercard.data import probe_data
from layercard.data.forms import Task
from layercard.errors import LayercardError
from layercard.records import column_values, first_record, sample_records
from tiny import tiny_tokenizer

COLUMNS = ["text", "text_pair", "prompt", "completion", "messages", "conversations", "label", "labels", "tokens", "tools",
           "chat_template_kwargs", "input_ids", "role", "content", "from", "value"]  # fmt: skip
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["user", "assistant"])
)
NAMES = st.sampled_from(COLUMNS) | st.text(max_size=4)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system"]), "content": st.text(max_size=6) | VALUES}
    ),
    max_size=3,
)
ROWS = st.lists(st.dictionaries(st.sampled_from(COLUMNS), VALUES | MESSAGES, max_size=4), min_size=1, max_size=4)
LIKELY = st.sampled_from([("text",), ("prompt", "completion"), ("messages",), ("text", "label"), ("tokens", "labels")])
"""Columns that are looked for."""


KINDS = [
    st.text(max_size=9),
    st.integers(-2, 5),
    st.floats(),
    st.lists(st.text(max_size=4)),
    st.lists(st.integers(0, 1), max_size=3),
    MESSAGES,
    VALUES,
]


@st.composite
def alike(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rows with the same columns that are looked for, each with values of one kind."""
    kinds = {name: draw(st.sampled_from(KINDS)) for name in draw(LIKELY)}
    return draw(st.lists(st.fixed_dictionaries(kinds), min_size=1, max_size=5))


def csv_text(rows: list[dict[str, Any]]) -> str:
    file = io.StringIO()
    names = sorted({name for row in rows for name in row})
    writer = csv.DictWriter(file, names)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


CONTENTS = st.one_of(
    st.tuples(st.sampled_from(["jsonl", "json", "csv", "parquet", "jsonl.gz", "csv.gz"]), st.binary(max_size=80)),
    st.tuples(
        st.sampled_from(["jsonl", "json", "csv"]),
        st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")),
    ),
    st.tuples(st.just("jsonl"), (ROWS | alike()).map(lambda rows: "\n".join(map(json.dumps, rows)).encode())),
    st.tuples(st.just("json"), (ROWS | alike() | VALUES).map(lambda value: json.dumps(value).encode())),
    st.tuples(st.just("csv"), (ROWS | alike()).map(lambda rows: csv_text(rows).encode())),
    st.tuples(st.just("jsonl.gz"), st.binary(max_size=60).map(gzip.compress)),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


def written(folder: Path, content: tuple[str, bytes]) -> str:
    path = folder / f"data.{content[0]}"
    path.write_bytes(content[1])
    return str(path)


@settings(
    deadline=None, max_examples=examples(), suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(CONTENTS)
def test_files_are_read_or_refused(folder: Path, content: tuple[str, bytes]) -> None:
    source = written(folder, content)
    said = None
    try:
        records = sample_records(source, count=3, seed=0)
        values = list(column_values(source, next(iter(first_record(source)), "text")))
    except LayercardError as error:
        said = str(error)
    if said is not None:
        assert source in said
        return
    assert 0 < len(records) <= 3
    assert len(values) >= len(records)


@settings(
    deadline=None, max_examples=examples(200), suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@example(("jsonl", b'{"tokens": [], "labels": []}'), "token-classification", None)
@given(
    CONTENTS,
    st.sampled_from(get_args(Task)),
    st.none() | st.dictionaries(st.sampled_from(COLUMNS), st.sampled_from(COLUMNS), max_size=2),
)
def test_rows_are_tokenized_or_refused(
    folder: Path, tokenizer: Any, content: tuple[str, bytes], task: Any, columns: Any
) -> None:
    try:
        found = probe_data(
            written(folder, content),
            tokenizer,
            task=task,
            examples=4,
            batch_size=2,
            max_length=16,
            seed=0,
            columns=columns,
        )
    except LayercardError:
        return
    for batch in found.batches:
        assert batch["input_ids"].shape == batch["attention_mask"].shape
