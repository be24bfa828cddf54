"""Writes a file so that a reader never sees half of it; JSON with every list of plain values on one line."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to a temporary file beside `path` and rename it there; leave nothing behind on failure."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        Path(temporary).chmod(0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def json_text(document: Any) -> str:
    """Return JSON that people can read: indented by 2, a list of plain values on one line; raise `ValueError` for NaN."""
    return "".join(_json(document, "")) + "\n"


def _json(value: Any, indent: str) -> Iterator[str]:
    deeper = f"{indent}  "
    if isinstance(value, Mapping) and value:
        items = [(f"{json.dumps(str(name))}: ", item) for name, item in value.items()]
        yield from _lines("{}", items, indent, deeper)
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping | list | tuple) for item in value):
        yield from _lines("[]", [("", item) for item in value], indent, deeper)
    else:
        yield json.dumps(value, allow_nan=False)


def _lines(brackets: str, items: list[tuple[str, Any]], indent: str, deeper: str) -> Iterator[str]:
    yield brackets[0]
    for number, (name, item) in enumerate(items):
        yield f"{',' if number else ''}\n{deeper}{name}"
        yield from _json(item, deeper)
    yield f"\n{indent}{brackets[1]}"
