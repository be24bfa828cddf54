"""The digests of rows and files: equal for equal data, other for other data, bounded, and without a trace."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from layercard.hosts.digest import BLOCK, BLOCKS, ROWS, file_facts, files_digest, rows_facts

CELLS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.floats(allow_nan=False),
    st.text(max_size=3),
    st.lists(st.integers(0, 3)),
)
TABLES = st.lists(st.dictionaries(st.sampled_from("ab"), CELLS, min_size=1), min_size=1, max_size=ROWS)


@settings(deadline=None)
@given(first=TABLES, second=TABLES)
def test_rows_have_one_digest_where_they_are_alike(first: list[Any], second: list[Any]) -> None:
    digests = [rows_facts(rows, 0)["digest"] for rows in (first, second)]  # type: ignore[index]
    same = repr([sorted(row.items()) for row in first]) == repr([sorted(row.items()) for row in second])
    assert (digests[0] == digests[1]) is same


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 1000])
def test_the_first_and_the_last_row_count_and_few_are_read(count: int) -> None:
    read = []

    class Counted(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            read.append(index)
            return super().__getitem__(index)

    rows = [{"a": [i]} for i in range(count)]
    found = rows_facts(Counted(rows), 0)
    assert found is not None and found["rows"] == count and found["columns"] == ["a"]
    assert len(read) == len(set(read)) == min(count, ROWS) and {0, count - 1} <= set(read)
    for index in (0, count - 1):
        changed = [*rows[:index], {"a": [-1]}, *rows[index + 1 :]]
        assert rows_facts(changed, 0)["digest"] != found["digest"]  # type: ignore[index]


def test_tensors_arrays_and_lists_are_read_by_value() -> None:
    kinds = [torch.tensor([1, 2]), np.array([1, 2]), [1, 2], torch.tensor([1.0, 2.0], dtype=torch.bfloat16)]
    for value in kinds:
        other = value * 2
        assert rows_facts([{"x": value}], 0) == rows_facts([{"x": value}], 0)
        assert rows_facts([{"x": value}], 0)["digest"] != rows_facts([{"x": other}], 0)["digest"]  # type: ignore[index]


def test_data_read_once_or_without_a_length_is_left_alone() -> None:
    class Once(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            raise AssertionError("read")

    for dataset in (Once(), Dataset.from_dict({"a": [1]}).to_iterable_dataset()):
        found = rows_facts(dataset, 0)
        assert found is not None and found["digest"] is None and found["rows"] is None
    assert rows_facts({"a": 1}, 0) == {"read": "rows", "name": None, "rows": 1, "columns": None, "digest": None}
    assert rows_facts(None, 0) is None
    assert rows_facts([], 0)["rows"] == 0  # type: ignore[index]


def test_rows_drawn_at_random_have_one_digest_and_leave_no_trace() -> None:
    class Augmented(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            return {"x": torch.randn(2), "y": random.random(), "z": np.random.rand(2)}

    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert rows_facts(Augmented([0] * 5), 1) == rows_facts(Augmented([0] * 5), 1)
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()
    assert before[2] == np.random.get_state()[1].tolist()


def test_a_file_is_known_by_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"x" * 100)
    first = file_facts(path)
    path.write_bytes(b"x" * 99 + b"y")
    assert file_facts(path)["digest"] != first["digest"] and first["name"] == "a.jsonl"


@pytest.mark.parametrize("where", [0.0, 0.31, 0.5, 1.0])
def test_files_up_to_sixteen_blocks_are_read_whole(tmp_path: Path, where: float) -> None:
    path, size = tmp_path / "weights", BLOCK * BLOCKS // 2
    held = bytearray(size)
    path.write_bytes(held)
    first = files_digest([path])
    held[int(where * (size - 1))] = 1
    path.write_bytes(held)
    assert files_digest([path]) != first


def test_several_files_count_each_by_its_name(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a", "b")]
    for path, text in zip(paths, (b"1", b"2"), strict=True):
        path.write_bytes(text)
    assert files_digest(paths) != files_digest(paths[:1])
    assert files_digest(paths) == files_digest(list(paths))
