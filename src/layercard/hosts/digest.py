"""Tells one training set from another by a few of its rows: `rows_facts`, and files by some blocks: `file_facts`.

All read a bounded part and nothing that can be read only once. They recognise data; they prove nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from layercard.hosts.rows import is_indexed
from layercard.probing.faults import FAILURES
from layercard.random_state import random_state

if TYPE_CHECKING:
    from hashlib import _Hash

ROWS = 8
"""Rows read, evenly spread over the data set, the first and the last among them."""
VALUES = 4096
"""Values read of each field of a row."""
BLOCKS, BLOCK = 16, 2**20
"""Blocks read of a file, evenly spread, and their size in bytes."""


def rows_facts(dataset: Any, seed: int) -> dict[str, Any] | None:
    """Return what is known of a training set: its length, its columns, and a digest of some rows; None without one.

    Data sets without a length, and those that numbers do not index, have None for a digest. The random state is left alone, so
    that rows drawn at random are the same for the same `seed`.
    """
    if dataset is None:
        return None
    facts: dict[str, Any] = {"read": "rows", "name": None, "rows": None, "columns": None, "digest": None}
    if not is_indexed(dataset):
        return facts
    size, count = len(dataset), min(ROWS, len(dataset))
    seen = hashlib.sha256(str(size).encode())
    with random_state(seed):
        try:
            rows = [dataset[number * (size - 1) // max(1, count - 1)] for number in range(count)]
        except FAILURES:  # a data set that a sampler of the user's own reads by other keys
            return facts | {"rows": size}
    for row in rows:
        _feed(seen, row)
    columns = sorted(rows[0]) if rows and isinstance(rows[0], Mapping) else None
    return facts | {"rows": size, "columns": columns, "digest": seen.hexdigest()[:32]}


def file_facts(path: Path) -> dict[str, Any]:
    """Return the name of a file and a digest of its size and of blocks spread over it."""
    return {"read": "file", "name": path.name, "rows": None, "columns": None, "digest": files_digest([path])}


def files_digest(paths: Sequence[Path]) -> str:
    """Return a digest of files: their names, their sizes, and blocks spread over all of them."""
    seen = hashlib.sha256()
    blocks = max(2, BLOCKS // max(1, len(paths)))
    for path in paths:
        size = path.stat().st_size
        seen.update(f"\0{path.name if len(paths) > 1 else ''} {size}".encode())
        with path.open("rb") as file:
            for start in sorted({index * max(0, size - BLOCK) // (blocks - 1) for index in range(blocks)}):
                file.seek(start)
                seen.update(file.read(BLOCK))
    return seen.hexdigest()[:32]


def _feed(seen: _Hash, value: Any) -> None:
    """Add a row or a part of one; what is neither text, number nor array counts by its kind alone."""
    if isinstance(value, Mapping):
        for name in sorted(value, key=str):
            seen.update(f"\0key {name}".encode())
            _feed(seen, value[name])
    elif isinstance(value, torch.Tensor | np.ndarray):
        array = np.asarray(value.detach().cpu().float() if isinstance(value, torch.Tensor) else value)
        seen.update(f"\0array {array.shape}".encode() + array.ravel()[:VALUES].tobytes())
    elif isinstance(value, str | bytes | int | float | None):
        seen.update(f"\0{type(value).__name__} {value!r}".encode())
    elif isinstance(value, Sequence):
        seen.update(f"\0list {len(value)}".encode())
        for part in value[:VALUES]:
            _feed(seen, part)
    else:
        seen.update(f"\0{type(value).__name__}".encode())
