"""Keeps docs/data-forms.md as it was tried: `check_section` compares a section, or writes it where asked to.

`LAYERCARD_WRITE_TABLES=1 pytest …` writes. A section stands between two comments that name it; each place where people
bring data has one, tried by a test of its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

PATH = Path(__file__).parents[1] / "docs" / "data-forms.md"
WRITE = "LAYERCARD_WRITE_TABLES"
WORKS = "works"
BY_DEPTH = "by depth: "
"""Before the reason why no score can be had where strategies by depth train."""
PLACE = re.compile(r"^\S*, (line|row|item) \d+: ")
COLUMNS = re.compile(r"^The dataset has the columns [^.]*\. ")


def reason(message: str) -> str:
    """Return a refusal without the place, the columns that were found and what follows its first sentence."""
    text = COLUMNS.sub("", PLACE.sub("", " ".join(message.removeprefix("Error: ").split())))
    return re.split(r"(?<=[a-z`)])\. ", text)[0].rstrip(".")


def section(name: str, corner: str, outcomes: Mapping[str, Mapping[str, str]]) -> str:
    """Return a table of `outcomes`, row to column to `works` or the reason of a refusal; reasons are notes below it.

    A reason behind `BY_DEPTH` is why only strategies by depth work.
    """
    columns = list(next(iter(outcomes.values())))
    cells_of = [cell for row in outcomes.values() for cell in row.values()]
    notes = list(dict.fromkeys(cell.removeprefix(BY_DEPTH) for cell in cells_of if cell != WORKS))
    lines = [f"| {corner} | {' | '.join(columns)} |", f"|{'---|' * (len(columns) + 1)}"]
    for label, row in outcomes.items():
        cells = [_cell(row[c], notes) for c in columns]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    listed = [f"{i}. {note}." for i, note in enumerate(notes, start=1)]
    return "\n".join([f"## {name}", "", *lines, *(["", "Refused, because:", "", *listed] if listed else [])])


def _cell(outcome: str, notes: list[str]) -> str:
    if outcome == WORKS:
        return WORKS
    note = f"[{notes.index(outcome.removeprefix(BY_DEPTH)) + 1}]"
    return f"by depth {note}" if outcome.startswith(BY_DEPTH) else note


def check_section(name: str, text: str) -> None:
    """Assert that the document holds this section, or write it into the document."""
    begin, end = f"<!-- tried: {name} -->", f"<!-- end of {name} -->"
    whole = PATH.read_text(encoding="utf-8")
    if os.environ.get(WRITE):
        if begin not in whole:
            whole = f"{whole.rstrip()}\n\n{begin}\n{end}\n"
        before, after = whole.split(begin)[0], whole.split(end)[1]
        PATH.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
        return
    found = whole.split(begin)[1].split(end)[0].strip() if begin in whole else ""
    assert found == text, (
        f"docs/data-forms.md does not say what was tried. Run this test with {WRITE}=1 and look at it."
    )


def rows_of(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return an empty table with these rows."""
    return {name: {} for name in names}
