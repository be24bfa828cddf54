"""Reads records, each a mapping of column to value that knows where it stands, from a local file or from the Hub.

JSON, JSON lines, CSV (also gzipped) and Parquet files, folders that `datasets` can read, and Hub ids. Files are read
here without any network. Lines are counted from 1, rows and items from 0. What the columns mean is `data`'s business.
"""

from __future__ import annotations

import csv
import gzip
import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from layercard.errors import DataError, nearest, one_of

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".parquet")
LONGEST_FIELD = 2**31 - 1
"""Characters of a CSV field; Python's own limit of 131,072 is less than a document may have."""
OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
LINE_BREAK = re.compile(r"\r\n|\r|\n")
_EXTRA = "Install it with `pip install 'layercard[cli]'`."


class Record(dict[str, Any]):
    """One example, a value a column; `place` says where it stands, such as `data.csv, line 3`."""

    def __init__(self, values: dict[str, Any], place: str) -> None:
        super().__init__(values)
        self.place = place


def sample_records(
    source: str, *, count: int, seed: int, split: str = "train", config: str | None = None
) -> list[Record]:
    """Return at most `count` records of `source`, drawn with `seed`, in the order in which they stand there.

    `source` is a file, a folder or a Hub id; `split` and `config` are read for the last two. Draws nothing from the
    global random state. Raises `DataError` where it does not exist, cannot be read, is empty, or has no such split.
    """
    path = local_file(source)
    if path is None:
        data = _loaded(source, split, config)
        records = [_row(source, i, data[i]) for i in _indices(len(data), count, seed)]
    elif kind_of(path) == ".parquet":
        table = _table(path)
        indices = _indices(table.num_rows, count, seed)
        rows = table.take(indices).to_pylist()
        records = [_row(str(path), i, row) for i, row in zip(indices, rows, strict=True)]
    else:
        with _readable(path) as found:
            records = _drawn(found, count, seed)
    if not records:
        raise DataError(f"The dataset {source} is empty. Give one with at least one example.")
    return records


def first_record(source: str, *, split: str = "train", config: str | None = None) -> Record:
    """Return the first record of `source`, reading no more of a text file than that; raises as `sample_records`."""
    path = local_file(source)
    if path is None or kind_of(path) == ".parquet":
        rows: Iterable[Record] = _every(source, path, split, config)
    else:
        with _readable(path) as found:
            rows = [row for row, _ in zip(found, range(1), strict=False)]
    for row in rows:
        return row
    raise DataError(f"The dataset {source} is empty. Give one with at least one example.")


def column_values(
    source: str, column: str, *, split: str = "train", config: str | None = None
) -> Iterator[tuple[str, Any]]:
    """Yield the place and the value of `column` in every record of `source`; None where a record has none."""
    path = local_file(source)
    if path is None or kind_of(path) == ".parquet":
        yield from ((row.place, row.get(column)) for row in _every(source, path, split, config, [column]))
        return
    with _readable(path) as found:
        yield from ((row.place, row.get(column)) for row in found)


def class_names(source: str, column: str, *, split: str = "train", config: str | None = None) -> list[str] | None:
    """Return the names that `datasets` keeps for the numbers of a class column, None where it keeps none."""
    path = local_file(source)
    if path is not None:
        return None
    import datasets

    feature = _loaded(source, split, config).features.get(column)
    feature = feature.feature if isinstance(feature, datasets.Sequence | datasets.List) else feature
    return list(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def place_of(record: dict[str, Any], source: str, index: int) -> str:
    """Return where a record stands for a message; one that does not know is the `index`-th of `source`."""
    return record.place if isinstance(record, Record) else f"{source}, row {index}"


def local_file(source: str) -> Path | None:
    """Return the file that `source` names, None for what `datasets` has to read; raise `DataError` where there is none."""
    path = Path(source).expanduser()
    if path.is_file():
        kind_of(path)
        return path
    if path.is_dir() or not _looks_like_a_path(source):
        return None
    one = " Several files are read from the folder that holds them, or joined into one." if _several(source) else ""
    raise DataError(
        f"The dataset {source} does not exist. Give a local file ({one_of(SUFFIXES)}), a folder, or a Hub id.{one}"
    )


def _several(source: str) -> bool:
    return any(sign in source for sign in "*?,")


def _looks_like_a_path(source: str) -> bool:
    return source.startswith((".", "/", "~")) or source.count("/") > 1 or Path(source).suffix in (*SUFFIXES, ".gz")


def kind_of(path: Path) -> str:
    """Return what a file is by its name, one of `SUFFIXES`; raise `DataError` where that is none."""
    kind = (Path(path.stem).suffix if _is_packed(path) else path.suffix).lower()
    if kind not in SUFFIXES:
        raise DataError(f"{path} is of no known kind. Supported are files ending in {one_of(SUFFIXES)}.")
    return kind


def _is_packed(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


@contextmanager
def _readable(path: Path) -> Iterator[Iterator[Record]]:
    """Yield the records of a JSON or CSV file one by one; what stops the reading is one clear error."""
    longest = csv.field_size_limit(LONGEST_FIELD)
    try:
        with _opened(path) as file:
            yield _csv(path, file) if kind_of(path) == ".csv" else _json(path, file)
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read ({error}). Give a readable UTF-8 file.") from None
    finally:
        csv.field_size_limit(longest)


def _opened(path: Path) -> TextIO:
    if _is_packed(path):
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
    """Yield the objects of a list, or of one object a line; a file that is one object with the rows inside is refused."""
    first = file.read(1)
    while first.isspace():
        first = file.read(1)
    file.seek(0)
    if first == "[":
        yield from _objects(path, ((f"item {i}", row) for i, row in enumerate(_parsed(path, "it", file.read()))))
    else:
        lines = ((f"line {i}", line) for i, line in enumerate(file, start=1) if line.strip())
        try:
            yield from _objects(path, ((where, _parsed(path, where, line)) for where, line in lines))
        except DataError:
            file.seek(0)
            _refuse_one_object(path, file)
            raise


def _refuse_one_object(path: Path, file: TextIO) -> None:
    """Say so where a file that is not one object a line is one object over several."""
    try:
        whole = json.load(file)
    except (ValueError, RecursionError):
        return
    if isinstance(whole, dict):
        rows = next((name for name, value in whole.items() if is_table(value)), None)
        remedy = "Write it on one line" if rows is None else f"Write the list in its `{rows}` alone"
        raise DataError(
            f"{path} is one JSON object over several lines. {remedy}: a list of objects, or one object a line."
        ) from None


def is_table(value: Any) -> bool:
    """Whether a value of a record is a list of rows, each an object, and no conversation."""
    if not isinstance(value, list) or not value or not all(isinstance(row, dict) for row in value):
        return False
    return not any({"role", "from"} & set(row) for row in value)


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
        yield Record(row, f"{path}, {where}")


def _csv(path: Path, file: TextIO) -> Iterator[Record]:
    blank = 0
    reader = csv.DictReader(file)
    while reader.fieldnames == []:  # a blank line above the header
        blank, reader = blank + 1, csv.DictReader(file)
    _check_header(path, reader.fieldnames or [])
    for row in reader:
        if None in row or None in row.values():
            raise DataError(
                f"{path}: line {blank + reader.line_num} has not as many fields as the header "
                f"({one_of(reader.fieldnames or [])})."
                " Put values that hold commas or line breaks in double quotes."
            )
        inside = sum(len(LINE_BREAK.findall(value)) for value in row.values())
        yield Record(dict(row), f"{path}, line {blank + reader.line_num - inside}")


def _check_header(path: Path, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"{path} has the column `{twice[0]}` {names.count(twice[0])} times. Give each column its own name."
        )
    sign = next((sign for sign in OTHER_SEPARATORS if len(names) == 1 and sign in names[0]), None)
    if sign is not None:
        raise DataError(
            f"{path} has one column, {names[0]!r}: its fields are separated by {OTHER_SEPARATORS[sign]}. Write it with commas, "
            "or as JSON lines."
        )


def _table(path: Path, columns: list[str] | None = None) -> Any:
    try:
        import pyarrow as pa  # type: ignore[import-untyped]
        import pyarrow.parquet as parquet  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        raise DataError(f"{path} is a Parquet file, and pyarrow is not installed. {_EXTRA}") from None
    try:
        return parquet.read_table(path, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as Parquet ({error}). Give a readable file.") from None


def _every(
    source: str, path: Path | None, split: str, config: str | None, columns: list[str] | None = None
) -> Iterator[Record]:
    """Yield the rows of a Parquet file, or of what `datasets` reads."""
    if path is None:
        data = _loaded(source, split, config)
        rows: Iterable[dict[str, Any]] = (
            data.select_columns([c for c in columns if c in data.features]) if columns else data
        )
    else:
        rows = (row for batch in _table(path, columns).to_batches() for row in batch.to_pylist())
    yield from (_row(str(path or source), i, row) for i, row in enumerate(rows))


def _row(source: str, index: int, values: dict[str, Any]) -> Record:
    return Record(dict(values), f"{source}, row {index}")


def _indices(rows: int, count: int, seed: int) -> list[int]:
    return sorted(random.Random(seed).sample(range(rows), min(rows, count)))


def _loaded(source: str, split: str, config: str | None) -> Any:
    """Return the split of a folder or a Hub id as a `datasets.Dataset`."""
    try:
        import datasets
    except ModuleNotFoundError:
        raise DataError(f"Reading {source} needs the package `datasets`, which is not installed. {_EXTRA}") from None
    folder = Path(source).expanduser() if Path(source).expanduser().is_dir() else None
    try:
        if folder is not None and any((folder / name).exists() for name in ("state.json", "dataset_dict.json")):
            return _of_saved(datasets.load_from_disk(str(folder)), source, split)
        return datasets.load_dataset(str(folder or source), config, split=split)
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        reason = (" ".join(str(error).split()) or type(error).__name__).rstrip(".")
        raise DataError(
            f"The dataset {source} (split {split!r}) cannot be loaded: {reason}. Give a local file, or a Hub id with "
            "`--split` and `--dataset-config` where it has several."
        ) from None


def _of_saved(loaded: Any, source: str, split: str) -> Any:
    """Return the split of a folder that `save_to_disk` wrote; a single dataset has none."""
    if not isinstance(loaded, dict):
        return loaded
    if split not in loaded:
        raise DataError(
            f"The dataset {source} has no split {split!r}.{nearest(split, loaded)} It has {one_of(loaded)}."
        )
    return loaded[split]
