"""Keeps every finished part of a study in a file of its own, so that a study that was killed goes on where it stopped.

A part's file is named after what it is and the digest of everything its result depends on; another setting is another
file. Files are written whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from layercard.errors import DataError
from layercard.files import write_text


class Store:
    """The finished parts in one folder; `inputs` is what all of them depend on."""

    def __init__(self, folder: Path, inputs: Mapping[str, Any]) -> None:
        self._folder, self._inputs = folder, dict(inputs)
        folder.mkdir(parents=True, exist_ok=True)

    def has(self, name: str, **own: Any) -> bool:
        """Whether this part is finished."""
        return self._path(name, own).exists()

    def result(self, name: str, make: Callable[[], dict[str, Any]], **own: Any) -> dict[str, Any]:
        """Return the part's result, made and kept if it is not there; `own` is what this part depends on beside."""
        path = self._path(name, own)
        if path.exists():
            return self._read(path)
        made = make()
        write_text(path, json.dumps({"inputs": self._inputs | own, "result": made}, allow_nan=False) + "\n")
        return made

    def _path(self, name: str, own: Mapping[str, Any]) -> Path:
        text = json.dumps(self._inputs | dict(own), sort_keys=True, allow_nan=False)
        return self._folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["result"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} does not hold a finished part of a study ({error}). Delete it, and it is made again."
            ) from None
        return result
