"""Reads rows of a trainer's own training set and collates them, without its dataloader.

Offers `sampled_rows`, `reads_once`, `holding`, `collated` and `documents_in`. The random state is the caller's to keep;
nothing of the trainer's dataloader, sampler or of accelerate is touched.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from layercard.errors import DataError, NothingToLearnError
from layercard.probing.documents import IGNORED

EMPTY = "The training set is empty. Give the trainer a `train_dataset` with examples."
MOST_PASSED_OVER = 64
"""For each row wanted, how many rows are read at most in search of rows that count."""


def is_indexed(dataset: Any) -> bool:
    """Whether rows are taken by their number; a stream may have a length, and torch gives it a `__getitem__` that only raises."""
    from torch.utils.data import IterableDataset
    from transformers.trainer_utils import has_length

    return has_length(dataset) and hasattr(dataset, "__getitem__") and not isinstance(dataset, IterableDataset)


def reads_once(dataset: Any) -> bool:
    """Whether what is read of `dataset` is gone: its `__iter__` gives the same iterator every time."""
    if is_indexed(dataset):
        return False
    iterator = iter(dataset)
    return iterator is dataset or iterator is iter(dataset)


def sampled_rows(dataset: Any, seed: int) -> Iterator[Any]:
    """Yield the rows of `dataset`, in an order drawn with `seed`; of a stream, in its own order.

    Raises `DataError` where the dataset can be read only once, so that training would miss what was read.
    """
    if is_indexed(dataset):
        order = list(range(len(dataset)))
        random.Random(seed).shuffle(order)
        return (dataset[index] for index in order)
    if reads_once(dataset):
        raise DataError(
            f"The training set ({type(dataset).__name__}) can be read only once, so probing would take examples away "
            "from training. Give a dataset whose `__iter__` starts anew, or choose layers without a probe, for "
            "example `lora_layers: uniform` or `lora_layers: [...]`."
        )
    return iter(dataset)


def documents_in(row: Any) -> int:
    """Return how many documents a row of the training set holds: several where it is packed, none without a label."""
    if not isinstance(row, Mapping):
        return 1
    labels = row.get("labels")
    if isinstance(labels, list) and labels and all(label == IGNORED for label in labels):
        return 0
    if isinstance(row.get("seq_lengths"), Sequence):
        return max(1, len(row["seq_lengths"]))
    if row.get("position_ids") is not None:
        return max(1, sum(int(position) == 0 for position in row["position_ids"]))
    return 1


def holding(
    rows: Iterable[Any], wanted: int, count: Callable[[Any], int] = documents_in, *, empty: str = EMPTY
) -> list[Any]:
    """Return the first rows whose `count`s add up to `wanted`; fewer where they are few or far between.

    Raises `DataError`, saying `empty`, where there is none.
    """
    taken, held = [], 0
    for row in rows:
        taken.append(as_given(row))
        held += count(row)
        if held >= wanted or len(taken) >= MOST_PASSED_OVER * wanted:
            break
    if not taken:
        raise NothingToLearnError(empty)
    return taken


def as_given(row: Any) -> Any:
    """Return a copy of a row, since collators may take keys out of it."""
    return dict(row) if isinstance(row, Mapping) else row


def collated(rows: Sequence[Any], collate: Any, batch_size: int) -> list[Any]:
    """Return the rows in batches of `batch_size`, collated as the trainer does."""
    return [collate(list(rows[i : i + batch_size])) for i in range(0, len(rows), batch_size)]
