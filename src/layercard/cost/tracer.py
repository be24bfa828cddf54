"""Counts what a model holds in a step for any rows, tokens and form of its weights, each traced once.

Batches are rows of random tokens with labels of the model's kind: what is held depends on their shapes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from layercard.cost.traced import RunShape, trace_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from layercard.anatomy.layers import LayerStack
    from layercard.cost.fit import Setup
    from layercard.cost.peak import ModelBytes


def tracer(bare: PreTrainedModel, stack: LayerStack, targets: Sequence[str] | None) -> Callable[[Setup], ModelBytes]:
    """Return what counts the bytes of `bare`, a model on the meta device, in a setup; raises `ModelError` as `trace_bytes` does.

    `stack` are its layers and `targets` the names of the modules that LoRA adapts (None: every linear one).
    """

    @cache
    def traced(rows: int, tokens: int, shape: RunShape) -> ModelBytes:
        with torch.random.fork_rng([]):
            batch = random_batch(bare, rows, tokens)
        return trace_bytes(bare, stack, batch, shape, target_modules=targets)

    return lambda setup: traced(setup.rows, setup.tokens, setup.shape)


def random_batch(model: Any, rows: int, width: int) -> dict[str, torch.Tensor]:
    """Return rows of random tokens, (rows, width), with labels of the model's kind."""
    ids = torch.randint(0, model.config.get_text_config().vocab_size, (rows, width))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return batch | _labels(type(model).__name__, model.config, batch)


def _labels(kind: str, config: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return labels as this class of model takes them; choices are read as two rows of one example."""
    rows = len(batch["input_ids"])
    first = torch.zeros(rows, dtype=torch.long)
    if kind.endswith("ForQuestionAnswering"):
        return {"start_positions": first, "end_positions": first}
    if kind.endswith("ForMultipleChoice"):
        return {name: torch.stack([values, values], 1) for name, values in batch.items()} | {"labels": first}
    if kind.endswith("ForTokenClassification"):
        return {"labels": torch.zeros_like(batch["input_ids"])}
    if kind.endswith("ForSequenceClassification"):
        numbers = torch.zeros((rows,) if config.num_labels == 1 else (rows, config.num_labels))
        return {"labels": first if _of_one_class(config) else numbers}
    return {"labels": batch["input_ids"]}


def _of_one_class(config: Any) -> bool:
    return config.problem_type in (None, "single_label_classification") and config.num_labels > 1
