"""Which columns of a dataset play which part of an example, for what a model is trained to do.

Offers `Task`, `Form` and `form_of`, which refuses by name what no form holds. Knows column names, not values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from layercard.errors import DataError, SettingsError, nearest, one_of
from layercard.records import Record, is_table

Task: TypeAlias = Literal[
    "causal",
    "seq2seq",
    "masked",
    "classification",
    "regression",
    "multi-label",
    "token-classification",
    "question-answering",
    "multiple-choice",
]

FORMS: dict[Task, tuple[tuple[str, ...], ...]] = {
    "causal": (("prompt", "completion"), ("messages",), ("conversations",), ("text",)),
    "seq2seq": (("prompt", "completion"),),
    "masked": (("text",),),
    "classification": (("text", "label"),),
    "regression": (("text", "label"),),
    "multi-label": (("text", "label"),),
    "token-classification": (("tokens", "label"),),
    "question-answering": (),
    "multiple-choice": (),
}
"""The parts of an example; the first set whose columns are there is taken, as TRL prefers prompt and completion."""
BESIDE: dict[Task, tuple[str, ...]] = {
    "causal": ("tools", "chat_template_kwargs"),
    "classification": ("text_pair",),
    "regression": ("text_pair",),
    "multi-label": ("text_pair",),
}
"""Parts that an example may have as well."""
LABEL_NAMES = ("label", "labels")
TAG_NAMES = (*LABEL_NAMES, "ner_tags", "tags")
"""Columns that hold the labels of texts and of tokens without being named, the first that is there."""
IMAGES = ("image", "images")


@dataclass(frozen=True)
class Form:
    """Which column plays each part of an example."""

    task: Task
    columns: Mapping[str, str]
    """Part to column, those beside the form's own included."""

    def has(self, part: str) -> bool:
        """Whether an example has this part."""
        return part in self.columns


def form_of(record: Record | dict[str, object], task: Task, columns: Mapping[str, str] | None = None) -> Form:
    """Return the form of examples like `record`; `columns` says which column plays which part.

    Raises `SettingsError` for parts that the task does not have, `DataError` where no form fits.
    """
    columns = columns or {}
    _refuse_unread(task)
    _check_named(record, task, columns)
    if task == "causal" and (images := [name for name in IMAGES if name in record]):
        raise DataError(
            f"The dataset has the column {one_of(images)}, so TRL trains on pictures; only text is read here. Leave the "
            "column out for a probe of text alone, or choose by depth: `layercard plan MODEL --lora-layers last`."
        )
    for form in FORMS[task]:
        found = {part: name for part in form if (name := _column(record, part, task, columns)) is not None}
        named = set(columns) - set(BESIDE.get(task, ()))
        if len(found) == len(form) and named <= set(form):
            beside = {p: name for p in BESIDE.get(task, ()) if (name := _column(record, p, task, columns)) is not None}
            return Form(task, found | beside)
    raise DataError(_missing(record, task))


def _column(record: Mapping[str, object], part: str, task: Task, columns: Mapping[str, str]) -> str | None:
    if part in columns:
        return columns[part]
    names = (part,) if part != "label" else TAG_NAMES if task == "token-classification" else LABEL_NAMES
    return next((name for name in names if name in record), None)


def _refuse_unread(task: Task) -> None:
    if not FORMS[task]:
        named = "Question answering" if task == "question-answering" else "Multiple choice"
        raise DataError(
            f"{named} is not read from a dataset here; {one_of(t for t in FORMS if FORMS[t])} are. Score layers in Python: "
            '`layercard.place(trainer, lora_layers="high")` reads your trainer\'s own batches. Or choose by depth, which reads '
            "no rows: `layercard plan MODEL --lora-layers last`."
        )


def _check_named(record: Mapping[str, object], task: Task, columns: Mapping[str, str]) -> None:
    known = sorted({part for form in FORMS[task] for part in form} | set(BESIDE.get(task, ())))
    for part, column in columns.items():
        if part not in known:
            raise SettingsError(f"`column` names the part {part!r}.{nearest(part, known)} Parts are {one_of(known)}.")
        if column not in record:
            raise DataError(f"The dataset has no column {column!r}.{nearest(column, record)} It has {one_of(record)}.")


def _missing(record: Mapping[str, object], task: Task) -> str:
    """Say what the dataset has and what is read; advise what can help with these columns."""
    supported = "; ".join(" and ".join(f"`{part}`" for part in form) for form in FORMS[task])
    return (
        f"The dataset has the columns {one_of(record)}. A {_named(task)} model is probed on {supported}."
        f"{_advice(record, task)}"
    )


def _named(task: Task) -> str:
    return {"seq2seq": "sequence-to-sequence", "classification": "classifying"}.get(task, task)


def _advice(record: Mapping[str, object], task: Task) -> str:
    """Return what `--column` could say of these very columns, or what a dataset would have to have."""
    pairs = _familiar(record) if task == "causal" else {}
    pairs = pairs or _fitting(record, task)
    if len(pairs) < 2 and (rows := [name for name, value in record.items() if is_table(value)]):
        return f" Where `{rows[0]}` holds the rows, write that list alone into a file, or one of its objects a line."
    if pairs:
        return f" Say which column plays which part: `{' '.join(f'--column {p}={c}' for p, c in pairs.items())}`."
    return f" Give a dataset with {' and '.join(f'`{part}`' for part in _absent(record, task))}."


FAMILIAR: tuple[dict[str, str], ...] = (
    {"prompt": "prompt", "completion": "chosen"},
    {"messages": "chosen"},
    {"prompt": "instruction", "completion": "output"},
    {"prompt": "question", "completion": "answer"},
    {"messages": "conversation"},
)
"""Well-known columns of language modelling and preference data by the part that they can play."""


def _familiar(record: Mapping[str, object]) -> dict[str, str]:
    found = next((known for known in FAMILIAR if _holds(record, known)), {})
    return {part: column for part, column in found.items() if part != column}


def _holds(record: Mapping[str, object], known: Mapping[str, str]) -> bool:
    talks = {part: isinstance(record.get(column), list) for part, column in known.items()}
    return all(column in record for column in known.values()) and talks.get("messages", True)


def _fitting(record: Mapping[str, object], task: Task) -> dict[str, str]:
    """Return columns without a part for the parts that lack one, by what the first record holds; {} where too few fit."""
    free = {name: value for name, value in record.items() if name not in {p for form in FORMS[task] for p in form}}
    talks = [
        name
        for name, value in free.items()
        if isinstance(value, list) and value and isinstance(value[0], dict) and not is_table(value)
    ]
    if task == "causal" and talks:
        return {"messages": talks[0]}
    texts = [name for name, value in free.items() if isinstance(value, str)]
    absent = _absent(record, task)
    if task == "causal" and len(absent) == 1 and absent[0] in {"messages", "conversations", "text"}:
        absent = ["prompt", "completion"] if len(texts) > 1 else ["text"]
    pairs: dict[str, str] = {}
    for part in absent:
        fits = list(free) if part in {"label", "tokens"} else texts
        column = next((name for name in fits if name not in pairs.values()), None)
        if column is None:
            return {}
        pairs[part] = column
    return pairs


def _absent(record: Mapping[str, object], task: Task) -> list[str]:
    """Return what the form that is nearest to being complete lacks."""
    lacking = [[p for p in form if _column(record, p, task, {}) is None] for form in FORMS[task]]
    return min(lacking, key=len)
