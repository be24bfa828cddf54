"""Whether a trainer computes a loss of its user's own, and how a loss is computed apart from the run's other processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

FRAMEWORKS = ("transformers", "trl", "axolotl")


def has_own_loss(trainer: Any) -> bool:
    """Whether the loss is computed by a function or an override that no framework wrote."""
    if trainer.compute_loss_func is not None or "compute_loss" in vars(trainer):
        return True
    owner = next(kind for kind in type(trainer).__mro__ if "compute_loss" in vars(kind))
    return owner.__module__.split(".", 1)[0] not in FRAMEWORKS


@contextmanager
def on_one_process(args: Any) -> Iterator[None]:
    """Count and average label terms over this process's batch alone: no other need compute a loss at the same time."""
    found = args.average_tokens_across_devices, args._n_gpu
    args.average_tokens_across_devices, args._n_gpu = False, min(1, args._n_gpu)
    try:
        yield
    finally:
        args.average_tokens_across_devices, args._n_gpu = found
