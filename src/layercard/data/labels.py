"""How a label is read: a class by number or name, a number to regress, several classes at once, one class a token.

Offers `Labels`, which reads one value, and `SavedHead`, what a model says of its own. Files differ in what they keep: a CSV
file has text alone, so a number is a number however it was written, and equal data give equal labels.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from layercard.data.forms import Task
from layercard.errors import DataError, one_of

LABELLED: tuple[Task, ...] = ("classification", "regression", "multi-label", "token-classification")
DEFAULT_NAME = re.compile(r"LABEL_\d+")
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True)
class SavedHead:
    """What a saved classifier's configuration says of its labels."""

    count: int
    problem: str | None = None
    names: Mapping[str, int] | None = None
    """The model's own class names; None where it never got any."""

    @classmethod
    def of(cls, config: Any) -> SavedHead:
        """Read a transformers configuration."""
        names = {str(name): int(number) for name, number in (config.label2id or {}).items()}
        unnamed = all(DEFAULT_NAME.fullmatch(name) for name in names)
        return cls(config.num_labels, config.problem_type, None if unnamed else names)

    @property
    def task(self) -> Task | None:
        """What its labels are, None where they may be one class or several, as transformers decides by their type."""
        known: dict[str | None, Task] = {
            "regression": "regression",
            "multi_label_classification": "multi-label",
            "single_label_classification": "classification",
        }
        return "regression" if self.problem is None and self.count == 1 else known.get(self.problem)


@dataclass(frozen=True)
class Labels:
    """How the values of a label column become what a model is trained on."""

    task: Task
    column: str
    count: int
    """Outputs of the head: classes, or numbers to regress."""
    names: Mapping[str, int] | None = None
    """Class name to number, None where the column holds numbers."""
    hot: bool = False
    """Several classes at once come as a list of 0 and 1, one a class, not as a list of classes."""

    @property
    def shown(self) -> str | None:
        """The numbers that names get, for people; None without names."""
        if self.names is None:
            return None
        listed = [f"{name}={number}" for name, number in list(self.names.items())[:12]]
        more = f", … ({len(self.names)} classes)" if len(self.names) > len(listed) else ""
        return f"Classes of `{self.column}`: {', '.join(listed)}{more}."

    def read(self, value: Any, place: str) -> Any:
        """Return a class number, a float, a list of floats (one a class or output), or a list of class numbers.

        Raises `DataError` naming `place`, the column and the value.
        """
        found = parsed(value)
        self._refuse_empty(found, value, place)
        several = self.task in {"multi-label", "token-classification"} or (self.task == "regression" and self.count > 1)
        if several != isinstance(found, list):
            raise self._wrong(place, value, "a list" if several else "one value")
        if self.task == "token-classification":
            return [self._class(item, value, place) for item in found]
        if self.task == "multi-label":
            return self._several(found, value, place)
        if self.task == "regression":
            return self._numbers(found, value, place) if several else self._number(found, value, place)
        return self._class(found, value, place)

    def _several(self, found: list[Any], value: Any, place: str) -> list[float]:
        if self.hot:
            if len(found) != self.count or any(item not in (0, 1) for item in found):
                raise self._wrong(place, value, f"a list of {self.count} numbers 0 or 1, one a class,")
            return [float(item) for item in found]
        classes = {self._class(item, value, place) for item in found}
        return [float(number in classes) for number in range(self.count)]

    def _numbers(self, found: list[Any], value: Any, place: str) -> list[float]:
        if len(found) != self.count:
            raise self._wrong(place, value, f"a list of {self.count} numbers")
        return [self._number(item, value, place) for item in found]

    def _number(self, found: Any, value: Any, place: str) -> float:
        if isinstance(found, str | list | dict):
            raise self._wrong(place, value, "a number")
        return float(found)

    def _class(self, found: Any, value: Any, place: str) -> int:
        if self.names is not None:
            number = self.names.get(class_name(found, value))
            if number is None:
                raise DataError(
                    f"{place}: the label {shown_value(value)} in `{self.column}` is none of the classes "
                    f"{one_of(list(self.names)[:12])}. Mend the row, or save the model with its `label2id`."
                )
            return number
        whole = whole_number(found)
        if whole is None:
            raise DataError(
                f"{place}: the label {shown_value(value)} in `{self.column}` is not a class number. Classes are counted from 0; "
                "for numbers to regress give `--task regression`."
            )
        if not 0 <= whole < self.count:
            raise DataError(
                f"{place}: the label {whole} in `{self.column}` is out of range: the model has {self.count} classes, 0 to "
                f"{self.count - 1}. Mend the row, or load a model with as many classes as the data."
            )
        return whole

    def _refuse_empty(self, found: Any, value: Any, place: str) -> None:
        if is_empty(found) or (isinstance(found, list) and any(map(is_empty, found))):
            raise empty_label(place, self.column, value)

    def _wrong(self, place: str, value: Any, wanted: str) -> DataError:
        return DataError(
            f"{place}: the label in `{self.column}` is {shown_value(value)}. Every example needs {wanted} there ({self.task})."
        )


def empty_label(place: str, column: str, value: Any) -> DataError:
    """Return the error for a label that is missing."""
    return DataError(
        f"{place}: the label in `{column}` is empty ({shown_value(value)}). Give it one, or leave the row out."
    )


def parsed(value: Any) -> Any:
    """Return what a value says, whatever the file's kind: text of a number, a truth value or a list becomes that."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if NUMBER.fullmatch(text):
        return float(text) if not text.lstrip("+-").isdigit() else int(text)
    if text.lower() in {"true", "false"}:
        return text.lower() == "true"
    if text.startswith("[") and text.endswith("]"):
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            return value
    return value


def is_empty(found: Any) -> bool:
    """Whether a value is missing: null, an empty text, or not a number."""
    return (
        found is None
        or (isinstance(found, str) and not found.strip())
        or (isinstance(found, float) and math.isnan(found))
    )


def whole_number(found: Any) -> int | None:
    """Return a truth value or a number without a fraction as a whole number, None for all else."""
    if isinstance(found, bool | int):
        return int(found)
    return int(found) if isinstance(found, float) and found.is_integer() else None


def class_name(found: Any, value: Any) -> str:
    """Return a class name as it stands in the file; an item of a list that was text is what the list says."""
    return value if isinstance(value, str) and not isinstance(parsed(value), list) else str(found)


def shown_value(value: Any) -> str:
    """Return a value for a message, not too long."""
    return f"{value!r:.60}"
