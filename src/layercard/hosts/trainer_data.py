"""Reads a trainer's own data sets through its own collator, without its dataloaders.

Offers the training set as the probe and the timing read it, and what a short training on trial needs: the
micro-batches of optimizer steps, and rows held out of them. The random state is put back; nothing of the trainer
moves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeAlias

from layercard.errors import DataError, HostError
from layercard.hosts.protocol import HeldOut
from layercard.hosts.rows import MOST_PASSED_OVER, as_given, collated, holding, reads_once, sampled_rows
from layercard.random_state import random_state
from layercard.ranks import together

EVAL_SET, TRAINING_SET = "eval_dataset", "training set"
LARGEST_SHARE_HELD_BACK = 4
"""One in so many rows of the training set is held back at most."""
MOST_MEASURED = 1000
"""Rows whose length is looked at, where not all lengths are at hand."""

Data: TypeAlias = tuple[Any, Any]
"""A data set and the collator of its rows, unused columns removed as the trainer's dataloaders do."""


def training_data(trainer: Any) -> Data:
    """Return the training set and its collator; raise `HostError` where there is none."""
    if trainer.train_dataset is None:
        raise HostError(
            "The trainer has no `train_dataset`, so there is nothing to probe or time. layercard reads the "
            "trainer's own training set; pass `train_dataset` to the trainer."
        )
    return _with_collator(trainer, trainer.train_dataset, "training")


def longest_row(trainer: Any) -> int:
    """Return the tokens of the longest training example, of a table of `datasets` all, else of the first `MOST_MEASURED` drawn.

    Raises `DataError` where the set can be read only once.
    """
    dataset, collate = training_data(trainer)
    if _is_arrow(dataset) and "input_ids" in dataset.column_names:
        import pyarrow.compute  # type: ignore[import-untyped]

        lengths = pyarrow.compute.list_value_length(dataset.data.column("input_ids"))
        return int(pyarrow.compute.max(lengths).as_py() or 0)
    with random_state(trainer.args.seed):
        rows = [as_given(row) for row in islice(sampled_rows(dataset, trainer.args.seed), MOST_MEASURED)]
        return max((int(batch["input_ids"].shape[-1]) for batch in collated(rows, collate, 1)), default=0)


def update_batches(trainer: Any, count: int, held_back: int) -> list[list[tuple[Mapping[str, Any], Any]]]:
    """Return the micro-batches of `count` optimizer steps of this process, with `num_items_in_batch`.

    The micro-batches are dealt to the processes as accelerate deals them, one after another. Raises `DataError` where
    no row is left beside those held back.
    """
    args, size = trainer.args, trainer._train_batch_size
    dataset, collate = training_data(trainer)
    with together(), random_state(args.seed):  # before label terms are counted over all processes
        wanted = held_back + micro_batches(trainer, count) * size
        rows = holding(sampled_rows(dataset, args.seed), wanted, _one)[held_back:]
        batches = collated(rows, collate, size)
    if not batches:
        raise DataError(f"All {held_back} rows of the training set are held back, so nothing is left to train on.")
    return dealt(trainer, batches, count)


def micro_batches(trainer: Any, count: int) -> int:
    """Return how many micro-batches `count` optimizer steps take on all processes."""
    each: int = trainer.args.gradient_accumulation_steps
    return count * each * int(trainer.args.world_size)


def dealt(trainer: Any, batches: Sequence[Any], count: int) -> list[list[tuple[Mapping[str, Any], Any]]]:
    """Return this process's share of `batches` for `count` optimizer steps, again and again where they are few."""
    args = trainer.args
    each, ranks = args.gradient_accumulation_steps, args.world_size
    numbers = [
        [(update * each + micro) * ranks + args.process_index for micro in range(each)] for update in range(count)
    ]
    updates = [[trainer._prepare_inputs(dict(batches[n % len(batches)])) for n in update] for update in numbers]
    counted = [trainer._get_num_items_in_batch(update, args.device) for update in updates]
    return [[(batch, items) for batch in update] for update, items in zip(updates, counted, strict=True)]


def heldout_batches(trainer: Any, examples: int, labelled: Callable[[Any], bool]) -> HeldOut:
    """Return at most `examples` rows, a batch each: of the eval set, or of the training set where that cannot give any.

    Rows whose batch is not `labelled` are passed over.
    """
    for data in _evaluation_data(trainer):
        rows, _ = _rows(trainer, data, examples, MOST_PASSED_OVER * examples, labelled)
        if rows:
            return HeldOut(EVAL_SET, rows, 0)
    data = training_data(trainer)
    most = min(MOST_PASSED_OVER * examples, _size(data[0], examples) // LARGEST_SHARE_HELD_BACK)
    rows, read = _rows(trainer, data, examples, most, labelled)
    return HeldOut(TRAINING_SET, rows, read)


def _one(row: Any) -> int:
    return 1


def _rows(trainer: Any, data: Data, wanted: int, most: int, labelled: Callable[[Any], bool]) -> tuple[list[Any], int]:
    """Return `wanted` labelled rows of the first `most` in the sampled order, each collated alone, and how many were read.

    None where the data set is empty or read once.
    """
    dataset, collate = data
    kept: list[Any] = []
    read = 0
    if reads_once(dataset):
        return kept, read
    with random_state(trainer.args.seed):
        for row in islice(sampled_rows(dataset, trainer.args.seed), most):
            if len(kept) >= wanted:
                break
            read += 1
            kept += [batch for batch in collated([as_given(row)], collate, 1) if labelled(batch)]
    return kept, read


def _size(dataset: Any, examples: int) -> int:
    from transformers.trainer_utils import has_length

    return len(dataset) if has_length(dataset) else examples * LARGEST_SHARE_HELD_BACK


def _evaluation_data(trainer: Any) -> Iterator[Data]:
    """Yield the eval set, or the first of several by name."""
    found = trainer.eval_dataset
    sets = list(found.values())[:1] if isinstance(found, dict) else [found]
    for dataset in sets:
        if dataset is not None:
            yield _with_collator(trainer, dataset, "evaluation")


def _with_collator(trainer: Any, dataset: Any, description: str) -> Data:
    if _is_arrow(dataset):
        return trainer._remove_unused_columns(dataset, description=description), trainer.data_collator
    return dataset, trainer._get_collator_with_removed_columns(trainer.data_collator, description)


def _is_arrow(dataset: Any) -> bool:
    from transformers.utils import is_datasets_available

    if not is_datasets_available():
        return False
    import datasets

    return isinstance(dataset, datasets.Dataset)
