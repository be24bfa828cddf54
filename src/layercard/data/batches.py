"""Batches of tokenized examples for a probe: `probe_data`, `collate`. Padding is told by `attention_mask`, never by the
pad token, which may be the end-of-sequence token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from layercard.data.chat import IGNORED, text_tokenizer, tokenize_by_template
from layercard.data.forms import Task, form_of
from layercard.data.label_columns import labels_of
from layercard.data.labels import LABELLED, Labels, SavedHead
from layercard.data.tokens import Tokens, teaches, tokenize_records
from layercard.errors import DataError
from layercard.records import class_names, column_values, sample_records
from layercard.registry import TokenizeExamples

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class ProbeData:
    """Batches for a probe: `input_ids`, `attention_mask` (rows, width) and `labels`.

    `labels` are (rows, width), of encoder-decoders as wide as the longest target; (rows,) class numbers or floats; or
    (rows, classes) floats.
    """

    batches: tuple[dict[str, Tensor], ...]
    examples: int
    skipped: int
    """Sampled examples in which nothing is left to learn, such as completions beyond `max_length`."""


def probe_data(
    source: str,
    tokenizer: Any,
    *,
    task: Task = "causal",
    examples: int = 32,
    batch_size: int = 8,
    max_length: int = 1024,
    seed: int = 0,
    columns: Mapping[str, str] | None = None,
    split: str = "train",
    config: str | None = None,
    labels: Labels | None = None,
    tokenize: TokenizeExamples = tokenize_by_template,
) -> ProbeData:
    """Return at most `examples` examples of `source`, sampled with `seed`, as batches on the CPU.

    Parameters: as of `tokenize_records`; `labels` by default of the whole dataset. Longer examples lose their end.
    Raises `DataError` where the data are missing, empty, unreadable, of unknown columns, or leave nothing to learn.
    """
    records = sample_records(source, count=examples, seed=seed, split=split, config=config)
    if task in LABELLED and labels is None:
        labels = dataset_labels(source, records[0], task=task, columns=columns, split=split, config=config)
    tokens = tokenize_records(
        records, tokenizer, task=task, max_length=max_length, seed=seed, columns=columns, source=source, labels=labels,
        tokenize=tokenize,
    )  # fmt: skip
    kept = [example for example in tokens if teaches(example, task)]
    if not kept:
        raise DataError(
            f"None of the {len(tokens)} examples sampled from {source} has a token to learn from within `max_length` "
            f"({max_length}). Give longer examples or a higher `max_length`."
        )
    groups = [kept[i : i + batch_size] for i in range(0, len(kept), batch_size)]
    return ProbeData(tuple(collate(group, pad_id(tokenizer)) for group in groups), len(kept), len(tokens) - len(kept))


def dataset_labels(
    source: str,
    record: dict[str, Any],
    *,
    task: Task | None = None,
    saved: SavedHead | None = None,
    columns: Mapping[str, str] | None = None,
    split: str = "train",
    config: str | None = None,
) -> Labels:
    """Return what the labels of a whole dataset are; `record` is one of its records, `task` and `saved` as of `labels_of`."""
    column = form_of(record, task or "classification", columns).columns["label"]
    values = column_values(source, column, split=split, config=config)
    names = class_names(source, column, split=split, config=config)
    return labels_of(values, column, task=task, saved=saved, names=names)


def pad_id(tokenizer: Any) -> int:
    """Return the id to pad with: the tokenizer's own, else that of the end of a sequence, else 0."""
    own = text_tokenizer(tokenizer)
    return next((i for i in (own.pad_token_id, own.eos_token_id) if i is not None), 0)


def collate(examples: Sequence[Tokens], pad_id: int) -> dict[str, Tensor]:
    """Return `input_ids`, `attention_mask` (rows, width) and `labels`, padded on the right to the longest example.

    Labels by token are padded to the longest of theirs; floats, one a class, are not.
    """
    width = max(len(example["input_ids"]) for example in examples)
    mask = [[1] * len(e["input_ids"]) for e in examples]
    batch = {
        "input_ids": torch.tensor([_padded(e["input_ids"], width, pad_id) for e in examples]),
        "attention_mask": torch.tensor([_padded(row, width, 0) for row in mask]),
        "labels": _labels([e["labels"] for e in examples]),
    }
    if "token_type_ids" in examples[0]:
        batch["token_type_ids"] = torch.tensor([_padded(e["token_type_ids"], width, 0) for e in examples])
    return batch


def _labels(labels: Sequence[Any]) -> Tensor:
    by_token = isinstance(labels[0], list) and not any(isinstance(label, float) for row in labels for label in row)
    if not by_token:
        return torch.tensor(labels)
    width = max(len(row) for row in labels)
    return torch.tensor([_padded(row, width, IGNORED) for row in labels])


def _padded(values: list[int], width: int, fill: int) -> list[int]:
    return values + [fill] * (width - len(values))
