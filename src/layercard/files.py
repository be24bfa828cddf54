"""Writes a file so that a reader never sees half of it; JSON with every list of plain values on one line."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

TEMPORARY = ".layercard-tmp"
"""How the name of a file ends that is being written. It says which process of which machine writes it."""
FORGOTTEN = 24 * 3600
"""Seconds after which such a file of another machine is taken for left over."""
CLOCK = 60
"""Seconds by which the start of a process and the time of a file may disagree."""


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to a temporary file beside `path` and rename it there; leave nothing behind on failure.

    What a killed process left in that folder half-way is removed.
    """
    remove_left_over(path.parent)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{_machine()}-{os.getpid()}-", suffix=TEMPORARY)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        Path(temporary).chmod(0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _machine() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def remove_left_over(folder: Path) -> None:
    """Remove from `folder` the temporary files of `write_text` whose process is no more; nothing else is touched."""
    for path in folder.glob(f".*{TEMPORARY}"):
        try:
            if _is_left_over(path):
                path.unlink()
        except OSError:  # it was renamed, or removed by another, meanwhile
            continue


def _is_left_over(path: Path) -> bool:
    machine, _, rest = path.name.removeprefix(".").partition("-")
    pid, written = rest.partition("-")[0], path.stat().st_mtime
    if machine != _machine() or not pid.isdecimal():
        return time.time() - written > FORGOTTEN
    try:
        return psutil.Process(int(pid)).create_time() > written + CLOCK  # another process has its number now
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False


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
