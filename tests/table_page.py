"""Keeps a page of tables as it was tried: a test compares the row that it tried, or writes it where asked to.

`LAYERCARD_WRITE_TABLES=1 pytest …` writes. A row begins with its name between backticks and belongs to the table whose line of
columns stands above it, so that tables of one page may have rows of the same name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from forms_table import WRITE

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Table:
    """One table: what stands above it, its columns, and the names of its rows in order."""

    above: str
    columns: tuple[str, ...]
    names: Sequence[str]

    @property
    def head(self) -> str:
        """The line of columns, by which the table is found."""
        return f"| {' | '.join(self.columns)} |"

    @property
    def header(self) -> str:
        """Everything above the first row."""
        return f"{self.above}\n{self.head}\n|{'---|' * len(self.columns)}\n"


@dataclass(frozen=True)
class TablePage:
    """A page under docs/, and its tables by name."""

    path: Path
    tables: Mapping[str, Table]

    def rows(self, table: str) -> dict[str, str]:
        """The lines of a table by their names; empty where the page does not have it."""
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        below = text.partition(f"{self.tables[table].head}\n")[2].split("\n\n")[0]
        return {line.split("`")[1]: line for line in below.splitlines() if line.startswith("| `")}

    def check_row(self, table: str, name: str, cells: Sequence[str]) -> None:
        """Assert that the page holds this row, or write it there."""
        line = _tidy(f"| `{name}` | {' | '.join(cell.replace('|', 'or') for cell in cells)} |")
        if os.environ.get(WRITE):
            self._write(table, name, line)
        stale = f"docs/{self.path.name} is stale. Run this test with {WRITE}=1 and look at it."
        assert self.rows(table).get(name) == line, stale

    def _write(self, table: str, name: str, line: str) -> None:
        rows = {each: self.rows(each) for each in self.tables}
        rows[table][name] = line
        written = [
            known.header + "".join(f"{rows[each][row]}\n" for row in known.names if row in rows[each])
            for each, known in self.tables.items()
        ]
        self.path.write_text("\n".join(written), encoding="utf-8")

    def check_names(self) -> None:
        """Assert that every table has its rows, no other, and what stands above it."""
        text = self.path.read_text(encoding="utf-8")
        for name, table in self.tables.items():
            assert list(self.rows(name)) == list(table.names), name
            assert table.header in text, name


def installed(versions: Mapping[str, str]) -> bool:
    """Whether the installed releases are those that a page is about; others know other things."""
    return all(version(package).startswith(release) for package, release in versions.items())


def _tidy(line: str) -> str:
    return " ".join(line.split()).replace(" .", ".")
