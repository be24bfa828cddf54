"""Whether a file can be written where a command was told to, asked before the work whose answer it would hold."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click


def refuse_unwritable(path: Path | None, option: str) -> None:
    """Raise `UsageError` where no file can be written at `path`, or in that folder, which `option` names; it may be missing."""
    if path is None:
        return
    full = path.absolute()
    there = full if full.is_dir() else next(folder for folder in full.parents if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            return
    except OSError as error:
        reason = error.strerror or str(error)
    raise click.UsageError(
        f"`{option}` is {path}, and no file can be written in {there} ({reason}). Name a folder that you may write into."
    )
