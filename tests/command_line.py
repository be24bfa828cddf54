"""Runs the `layercard` command in this process and keeps what it printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from layercard.cli.main import main


@dataclass(frozen=True)
class Ran:
    """What a command printed and exited with."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return found

    @property
    def words(self) -> str:
        """Both streams as one line, for tables and long lines are wrapped."""
        return " ".join((self.out + self.err).split())


Run = Callable[..., Ran]


def runner(capfd: pytest.CaptureFixture[str], *first: str) -> Run:
    """Return what runs `layercard` with these first arguments and the given ones."""

    def ran(*arguments: object) -> Ran:
        code = main([*first, *map(str, arguments)])
        printed = capfd.readouterr()
        return Ran(code, printed.out, printed.err)

    return ran


def questions(folder: Path) -> Path:
    """Write a dozen prompts with completions and return the file."""
    path = folder / "data.jsonl"
    rows = [{"prompt": f"question {i}? ", "completion": f"answer {i}"} for i in range(12)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path
