"""A table in Markdown from rows of text; what would break a cell or be read as HTML is escaped."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Collection[int] = ()) -> str:
    """Return a table in Markdown; the columns whose numbers are in `right` are aligned to the right."""
    rule = ["---:" if column in right else "---" for column in range(len(header))]
    lines = [[cell(text) for text in header], rule, *([cell(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(text: str) -> str:
    """Return text that stays in one cell of a Markdown table and holds no HTML."""
    return plain(text).replace("|", r"\|")


def plain(text: str) -> str:
    """Return text on one line in which Markdown finds no HTML."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
