"""Reads rows of a trainer's own training set and collates them, without its dataloader.

Offers `sampled_rows`, `collated` and `documents_in`. The random state is the caller's to keep; nothing of the
trainer's dataloader, sampler or of accelerate is touched.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from layercard.errors import DataError, NothingToLearnError


def sampled_rows(dataset: Any, seed: int) -> Iterator[Any]:
    """Yield the rows of `dataset`, in an order drawn with `seed`; of one without a length, in its own order.

    Raises `DataError` where the dataset can be read only once, so that training would miss what was read.
    """
    from transformers.trainer_utils import has_length

    if has_length(dataset) and hasattr(dataset, "__getitem__"):
        order = list(range(len(dataset)))
        random.Random(seed).shuffle(order)
        return (dataset[index] for index in order)
    iterator = iter(dataset)
    if iterator is dataset or iterator is iter(dataset):
        raise DataError(
            f"The training set ({type(dataset).__name__}) can be read only once, so probing would take examples away "
            "from training. Give a dataset whose `__iter__` starts anew, or choose layers without a probe, for "
            "example `lora_layers: [...]` and `measure: false`."
        )
    return iterator


def documents_in(row: Any) -> int:
    """Return how many documents a row of the training set holds: several where it is packed."""
    if not isinstance(row, Mapping):
        return 1
    if isinstance(row.get("seq_lengths"), Sequence):
        return max(1, len(row["seq_lengths"]))
    if row.get("position_ids") is not None:
        return max(1, sum(int(position) == 0 for position in row["position_ids"]))
    return 1


def holding(rows: Iterable[Any], wanted: int, count: Callable[[Any], int] = documents_in) -> list[Any]:
    """Return the first rows whose `count`s add up to `wanted`; all rows where there are not so many.

    Raises `DataError` where there is none.
    """
    taken, held = [], 0
    for row in rows:
        taken.append(dict(row) if isinstance(row, Mapping) else row)  # collators may take keys out of a row
        held += count(row)
        if held >= wanted:
            break
    if not taken:
        raise NothingToLearnError("The training set is empty. Give the trainer a `train_dataset` with examples.")
    return taken


def collated(rows: Sequence[Any], collate: Any, batch_size: int) -> list[Any]:
    """Return the rows in batches of `batch_size`, collated as the trainer does."""
    return [collate(list(rows[i : i + batch_size])) for i in range(0, len(rows), batch_size)]
