"""Reads a sample of records, each a mapping of column to value, from a local file or from the Hub.

JSON, JSON lines, CSV (also gzipped) and Parquet files, folders that `datasets` can read, and Hub ids. Files are read
here without any network. What the columns mean is `data.py`'s business.
"""

from __future__ import annotations

import csv
import gzip
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO, TypeAlias

from layercard.errors import DataError, one_of

Record: TypeAlias = dict[str, Any]

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".parquet")
_EXTRA = "Install it with `pip install 'layercard[cli]'`."


def sample_records(
    source: str, *, count: int, seed: int, split: str = "train", config: str | None = None
) -> list[Record]:
    """Return at most `count` records of `source`, drawn with `seed`, in the order in which they stand there.

    `source` is a file, a folder or a Hub id; `split` and `config` are read for the last two. Draws nothing from the
    global random state. Raises `DataError` where it does not exist, cannot be read, or is empty.
    """
    path = Path(source).expanduser()
    if path.is_file():
        records = _from_file(path, count, seed)
    elif path.is_dir() or not _looks_like_a_path(source):
        records = _from_datasets(path if path.is_dir() else None, source, count, seed, split, config)
    else:
        raise DataError(
            f"The dataset {source} does not exist. Give a local file ({one_of(SUFFIXES)}), a folder, or a Hub id."
        )
    if not records:
        raise DataError(f"The dataset {source} is empty. Give one with at least one example.")
    return records


def _looks_like_a_path(source: str) -> bool:
    return source.startswith((".", "/", "~")) or source.count("/") > 1 or Path(source).suffix in (*SUFFIXES, ".gz")


def _from_file(path: Path, count: int, seed: int) -> list[Record]:
    kind = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    try:
        if kind == ".parquet":
            return _parquet(path, count, seed)
        if kind not in SUFFIXES:
            raise DataError(f"{path} is of no known kind. Supported are files ending in {one_of(SUFFIXES)}.")
        with _opened(path) as file:
            rows = _csv(path, file) if kind == ".csv" else _json(path, file)
            return _drawn(rows, count, seed)
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read ({error}). Give a readable UTF-8 file.") from None


def _opened(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _drawn(rows: Iterable[Record], count: int, seed: int) -> list[Record]:
    """Return a uniform sample (Vitter 1985, algorithm R) that holds no more than `count` rows at a time."""
    generator = random.Random(seed)
    kept: list[tuple[int, Record]] = []
    for index, row in enumerate(rows):
        if index < count:
            kept.append((index, row))
        elif (place := generator.randrange(index + 1)) < count:
            kept[place] = (index, row)
    return [row for _, row in sorted(kept, key=lambda pair: pair[0])]


def _json(path: Path, file: TextIO) -> Iterator[Record]:
    """Yield the objects of a list, or of one object a line."""
    first = file.read(1)
    while first.isspace():
        first = file.read(1)
    file.seek(0)
    if first == "[":
        yield from _objects(path, ((f"item {i}", row) for i, row in enumerate(_parsed(path, "it", file.read()))))
    else:
        lines = ((f"line {i}", line) for i, line in enumerate(file, start=1) if line.strip())
        yield from _objects(path, ((where, _parsed(path, where, line)) for where, line in lines))


def _parsed(path: Path, where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: {where} is not JSON ({error}). Give a list of objects, or one object a line."
        ) from None


def _objects(path: Path, rows: Iterable[tuple[str, Any]]) -> Iterator[Record]:
    for where, row in rows:
        if not isinstance(row, dict):
            raise DataError(f"{path}: {where} is a {type(row).__name__}. Every example is a JSON object of columns.")
        yield row


def _csv(path: Path, file: TextIO) -> Iterator[Record]:
    reader = csv.DictReader(file)
    for row in reader:
        if None in row or None in row.values():
            raise DataError(
                f"{path}: line {reader.line_num} has not as many fields as the header ({one_of(reader.fieldnames or [])})."
                " Put values that hold commas or line breaks in double quotes."
            )
        yield dict(row)


def _parquet(path: Path, count: int, seed: int) -> list[Record]:
    try:
        import pyarrow as pa  # type: ignore[import-untyped]
        import pyarrow.parquet as parquet  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        raise DataError(f"{path} is a Parquet file, and pyarrow is not installed. {_EXTRA}") from None
    try:
        table = parquet.read_table(path)
    except pa.ArrowException as error:
        raise DataError(f"{path} cannot be read as Parquet ({error}). Give a readable file.") from None
    rows: list[Record] = table.take(_indices(table.num_rows, count, seed)).to_pylist()
    return rows


def _indices(rows: int, count: int, seed: int) -> list[int]:
    return sorted(random.Random(seed).sample(range(rows), min(rows, count)))


def _from_datasets(
    folder: Path | None, source: str, count: int, seed: int, split: str, config: str | None
) -> list[Record]:
    try:
        import datasets
    except ModuleNotFoundError:
        raise DataError(f"Reading {source} needs the package `datasets`, which is not installed. {_EXTRA}") from None
    try:
        if folder is not None and any((folder / name).exists() for name in ("state.json", "dataset_dict.json")):
            loaded = datasets.load_from_disk(str(folder))
            data = loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
        else:
            data = datasets.load_dataset(str(folder or source), config, split=split)
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        reason = (" ".join(str(error).split()) or type(error).__name__).rstrip(".")
        raise DataError(
            f"The dataset {source} (split {split!r}) cannot be loaded: {reason}. Give a local file, or a Hub id with "
            "`--split` and `--dataset-config` where it has several."
        ) from None
    return [dict(data[i]) for i in _indices(len(data), count, seed)]
