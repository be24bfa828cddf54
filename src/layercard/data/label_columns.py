"""What the labels of a whole column are: `labels_of`, from one pass over it.

Names get numbers in sorted order, as `datasets` gives them when it encodes a column as classes, unless the model names its
classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from layercard.data.forms import Task
from layercard.data.labels import (
    Labels,
    SavedHead,
    class_name,
    empty_label,
    is_empty,
    parsed,
    shown_value,
    whole_number,
)
from layercard.errors import DataError, one_of

MOST_NAMES = 10_000
"""Different texts after which a column is taken for something else than classes."""
MOST_CLASSES = 1_000_000


def labels_of(
    values: Iterable[tuple[str, Any]],
    column: str,
    *,
    task: Task | None = None,
    saved: SavedHead | None = None,
    names: Iterable[str] | None = None,
) -> Labels:
    """Return what the labels of a whole column are.

    Parameters: `values` are places and values; `task` is what the user asked for, None to decide by `saved`, the head of
    the model, and by the values: lists are several classes at once, fractions are numbers to regress, all else classes.
    `names` are the names of the class numbers where the dataset keeps them.
    Raises `DataError` for an empty label, and for values of which no classes can be made.
    """
    seen = _Seen(column)
    for place, value in values:
        seen.take(place, value)
    task = task or (None if saved is None else saved.task)
    task = task or (
        "multi-label" if seen.lists else "regression" if saved is None and seen.fraction else "classification"
    )
    if task == "regression":
        return Labels(task, column, saved.count if saved is not None else max(1, seen.longest))
    if seen.names:
        return _named(task, column, seen, saved)
    return _numbered(task, column, seen, saved, names)


class _Seen:
    """What a pass over a column found."""

    def __init__(self, column: str) -> None:
        self.column = column
        self.texts: dict[str, None] = {}
        self.names = self.fraction = self.lists = False
        self.binary = True
        """Whether every number is 0 or 1."""
        self.lengths: set[int] = set()
        self.highest = 0
        self.where = ""

    @property
    def longest(self) -> int:
        """The length of the longest list."""
        return max(self.lengths, default=0)

    def take(self, place: str, value: Any) -> None:
        """Take one row's value in."""
        found = parsed(value)
        if is_empty(found):
            raise empty_label(place, self.column, value)
        if isinstance(found, list):
            self.lists = True
            self.lengths.add(len(found))
        for item in found if isinstance(found, list) else [found]:
            if is_empty(item):
                raise empty_label(place, self.column, value)
            self._one(item, value, place)

    def _one(self, item: Any, value: Any, place: str) -> None:
        if isinstance(item, dict | list):
            raise DataError(
                f"{place}: the label in `{self.column}` is {shown_value(value)}. Labels are class names, "
                "numbers, or lists of them."
            )
        if isinstance(item, str):
            self.names = True
        elif (whole := whole_number(item)) is None:
            self.fraction, self.binary = True, False
        else:
            self.binary = self.binary and whole in (0, 1)
            if whole > self.highest:
                self.highest, self.where = whole, place
        if len(self.texts) <= MOST_NAMES:
            self.texts[class_name(item, value)] = None


def _named(task: Task, column: str, seen: _Seen, saved: SavedHead | None) -> Labels:
    if saved is not None and saved.names is not None:
        return Labels(task, column, saved.count, dict(sorted(saved.names.items(), key=lambda pair: pair[1])))
    if len(seen.texts) > MOST_NAMES:
        raise DataError(
            f"The column `{column}` holds over {MOST_NAMES:,} different texts, which are no class names. Say which column "
            "holds the classes with `--column label=NAME`."
        )
    ordered = {name: number for number, name in enumerate(sorted(seen.texts))}
    if saved is not None and len(ordered) > saved.count:
        raise DataError(
            f"The column `{column}` holds {len(ordered)} class names ({one_of(list(ordered)[:12])}), and the model has "
            f"{saved.count} classes. Load a model with as many, or one without a classifier, which then gets a new one."
        )
    return Labels(task, column, saved.count if saved is not None else len(ordered), ordered)


def _numbered(task: Task, column: str, seen: _Seen, saved: SavedHead | None, names: Iterable[str] | None) -> Labels:
    length = seen.longest
    hot = task == "multi-label" and len(seen.lengths) == 1 and seen.binary and length > 1
    if saved is not None:
        return Labels(task, column, saved.count, hot=hot and length == saved.count)
    kept = list(names or ())
    count = length if hot else max(seen.highest + 1, len(kept))
    if count > MOST_CLASSES:
        raise DataError(
            f"{seen.where}: the label {seen.highest} in `{column}` would need {count:,} classes. Classes are counted from 0; "
            "for numbers to regress give `--task regression`."
        )
    return Labels(task, column, count, hot=hot)
