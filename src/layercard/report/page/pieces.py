"""What a page is made of: sections with a lead, a figure and tables. Every figure has its table."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from layercard.report.verdict import RunVerdict

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Table:
    """A table of text; the first cell of a row names it."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: Collection[int] = ()
    """Columns that are aligned to the right."""
    long: bool = False
    """Whether it is folded away until asked for."""


@dataclass(frozen=True)
class Figure:
    """A picture: which macro draws it, what it shows in words, and the table that says the same."""

    kind: str
    title: str
    description: str
    drawing: Any
    caption: str
    table: Table


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    id: str
    heading: str
    lead: str = ""
    figure: Figure | None = None
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True)
class Page:
    """The whole page."""

    title: str
    subtitle: str
    verdict: RunVerdict
    sections: tuple[Section, ...]
