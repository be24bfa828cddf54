"""The examples of a study: tokenized training rows of a seed, and held-out ones with what they are judged by.

Reads what `layercard.data` reads. A held-out record may also hold `choices` with `label` (the index of the right one),
or `references` (texts, of which any would do).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layercard.cards.differences import template_digest
from layercard.data import LABELLED, Labels, Task, Tokens, teaches, tokenize_records
from layercard.data.batches import dataset_labels
from layercard.data.chat import tokenize_by_template
from layercard.errors import DataError
from layercard.records import Record, sample_records
from layercard.registry import TokenizeExamples
from layercard.study.settings import StudyData, StudySettings

HELDOUT_SEED = 0
"""Every run is judged by the same examples."""


@dataclass(frozen=True)
class HeldOut:
    """One held-out example."""

    tokens: Tokens
    choices: tuple[Tokens, ...] = ()
    """The prompt followed by each choice."""
    lengths: tuple[int, ...] = ()
    """Bytes of each choice, by which its log-likelihood is divided."""
    answer: int | None = None
    """The index of the right choice."""
    prompt: str | None = None
    references: tuple[str, ...] = ()


def training_rows(
    data: StudyData,
    tokenizer: Any,
    task: Task,
    settings: StudySettings,
    seed: int,
    *,
    tokenize: TokenizeExamples = tokenize_by_template,
) -> list[Tokens]:
    """Return the rows of a training in their order: `steps` × `batch_size`, repeated where the data hold fewer."""
    wanted = settings.steps * settings.batch_size
    records = sample_records(data.train, count=wanted, seed=seed, split=data.split, config=data.config)
    random.Random(seed).shuffle(records)
    tokens = _tokenized(records, data, tokenizer, task, settings, seed, data.train, tokenize)
    rows = [row for row in tokens if teaches(row, task)]
    if not rows:
        raise DataError(
            f"None of the {len(tokens)} examples sampled from {data.train} has a token to learn from within `max_length` "
            f"({settings.max_length}). Give longer examples or a higher `max_length`."
        )
    return [rows[i % len(rows)] for i in range(wanted)]


def heldout_examples(
    data: StudyData,
    tokenizer: Any,
    task: Task,
    settings: StudySettings,
    *,
    tokenize: TokenizeExamples = tokenize_by_template,
) -> list[HeldOut]:
    """Return the held-out examples, drawn once for all runs."""
    count = settings.heldout_examples
    records = sample_records(data.heldout, count=count, seed=HELDOUT_SEED, split=data.heldout_split, config=data.config)
    tokens = _tokenized(records, data, tokenizer, task, settings, HELDOUT_SEED, data.heldout, tokenize)
    found = [
        _heldout(record, row, data, tokenizer, settings, tokenize) if task == "causal" else HeldOut(row)
        for record, row in zip(records, tokens, strict=True)
        if teaches(row, task)
    ]
    found = [example for example in found if all(teaches(choice, task) for choice in example.choices)]
    if not found:
        raise DataError(f"None of the {len(tokens)} examples of {data.heldout} has a token to predict. Give others.")
    return found


def check_readable(
    data: StudyData, tokenizer: Any, task: Task, settings: StudySettings, *, tokenize: TokenizeExamples
) -> None:
    """Raise `DataError` where the data cannot be used; needs no model, whose weights may take minutes to load."""
    heldout_examples(data, tokenizer, task, settings, tokenize=tokenize)
    training_rows(data, tokenizer, task, settings, settings.seeds[0], tokenize=tokenize)


def layout_of(data: StudyData, tokenizer: Any) -> tuple[dict[str, str], str | None]:
    """Return which column plays which part, and a digest of the chat template where examples are messages."""
    record = sample_records(data.train, count=1, seed=0, split=data.split, config=data.config)[0]
    columns: dict[str, str] = {n: n for n in ("messages", "prompt", "completion", "text", "label") if n in record}
    columns |= dict(data.columns)
    chat = any(isinstance(record.get(column), list) for column in columns.values())
    return columns, template_digest(str(tokenizer.chat_template)) if chat else None


def content_digest(source: str) -> str | None:
    """Return the SHA-256 of a file's content; None for folders and Hub ids."""
    path = Path(source).expanduser()
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tokenized(
    records: Sequence[Record | dict[str, Any]],
    data: StudyData,
    tokenizer: Any,
    task: Task,
    settings: StudySettings,
    seed: int,
    source: str,
    tokenize: TokenizeExamples,
) -> list[Tokens]:
    return tokenize_records(
        records,
        tokenizer,
        task=task,
        max_length=settings.max_length,
        seed=seed,
        columns=data.columns,
        source=source,
        labels=_labels(data, records[0], task),
        tokenize=tokenize,
    )


def _labels(data: StudyData, record: dict[str, Any], task: Task) -> Labels | None:
    """Return how labels are read, the same for training and held-out examples."""
    if data.labels is not None or task not in LABELLED:
        return data.labels
    return dataset_labels(data.train, record, task=task, columns=data.columns, split=data.split, config=data.config)


def _heldout(
    record: Record, row: Tokens, data: StudyData, tokenizer: Any, settings: StudySettings, tokenize: TokenizeExamples
) -> HeldOut:
    prompt = record.get(data.columns.get("prompt", "prompt"))
    references = record.get("references") or ()
    choices, answer = record.get("choices"), record.get("label")
    if not choices or not isinstance(prompt, str):
        return HeldOut(row, prompt=prompt if isinstance(prompt, str) else None, references=tuple(references))
    if not prompt:
        raise DataError(f"{data.heldout}: an example with `choices` has an empty prompt. Give each one a prompt.")
    if not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise DataError(
            f"{data.heldout}: an example has {len(choices)} `choices` and the `label` {answer!r}. The label is the index of "
            "the right choice, from 0."
        )
    column = data.columns.get("completion", "completion")
    options = _tokenized(
        [{**record, column: choice} for choice in choices],
        data, tokenizer, "causal", settings, HELDOUT_SEED, data.heldout, tokenize,
    )  # fmt: skip
    lengths = tuple(len(str(choice).encode()) for choice in choices)
    return HeldOut(row, tuple(options), lengths, answer, prompt, tuple(references))
