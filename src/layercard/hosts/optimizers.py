"""Makes a trainer's optimizer anew: for a training on trial, or for good after the layers to adapt have changed.

Both go through the trainer's own `create_optimizer`, overridden or not, so that parameter groups, weight decay and
every kind of optimizer are what the trainer would have made. Checked against transformers 5.23, whose training loop
makes optimizer and scheduler before `on_train_begin` and reads both from the trainer at every step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from layercard.errors import HostError
from layercard.ranks import ranks


def trial_optimizer(trainer: Any) -> torch.optim.Optimizer:
    """Return a new optimizer for what trains now, at the peak learning rate, and leave the trainer its own."""
    found = trainer.optimizer
    trainer.optimizer = None
    try:
        trainer.create_optimizer()
        made: torch.optim.Optimizer = trainer.optimizer
        return made
    finally:
        trainer.optimizer = found


def trial_scaler(trainer: Any) -> Any:
    """Return a loss scaler in the state of the trainer's; one that does nothing where it has none."""
    scaler = trainer.accelerator.scaler
    return torch.amp.GradScaler("cpu", enabled=False) if scaler is None else deepcopy(scaler)


@contextmanager
def owned(trainer: Any, optimizer: torch.optim.Optimizer, scaler: Any) -> Iterator[None]:
    """Let the trainer's step see this optimizer and loss scaler inside the block."""
    found = trainer.optimizer, trainer.accelerator.scaler
    trainer.optimizer = optimizer
    if trainer.accelerator.scaler is not None:
        trainer.accelerator.scaler = scaler
    try:
        yield
    finally:
        trainer.optimizer, trainer.accelerator.scaler = found


def renew_optimizer(trainer: Any, max_steps: int) -> None:
    """Replace optimizer and scheduler by new ones for what trains now, as if it had trained from the start.

    For `on_train_begin`, before any step. Where the model is wrapped by DistributedDataParallel, the wrapper learns of
    the parameters too, and every process gets the first one's values. Raises `HostError` where the scheduler is not the
    trainer's own making.
    """
    if trainer.lr_scheduler is not None and not trainer._created_lr_scheduler:
        raise HostError(
            "The trainer was given a scheduler, which belongs to the optimizer of the layers placed first, so the adapted "
            "layers cannot change when training begins. Pass no `optimizers`, or use `on_quality_loss: stop`."
        )
    accelerator, old = trainer.accelerator, trainer.optimizer
    accelerator._optimizers[:] = [optimizer for optimizer in accelerator._optimizers if optimizer is not old]
    trainer.optimizer = trainer.lr_scheduler = None
    if isinstance(trainer.model_wrapped, DistributedDataParallel):
        share([p.data for p in trainer.model.parameters() if p.requires_grad])
        _rebuild(trainer.model_wrapped)
    trainer.create_optimizer()
    trainer.optimizer = accelerator.prepare(trainer.optimizer)
    trainer.create_scheduler(num_training_steps=max_steps)
    for name in ("optimizer", "lr_scheduler"):
        setattr(trainer.callback_handler, name, getattr(trainer, name))


def _rebuild(wrapper: DistributedDataParallel) -> None:
    """Make the wrapper's reducer anew for the parameters that train now, by the way that pickling restores one.

    The training loop holds this very object, so another wrapper would not be used.
    """
    group = wrapper.process_group
    wrapper.__setstate__(wrapper.__getstate__())
    wrapper.process_group = group


def share(values: Sequence[Tensor]) -> None:
    """Give every process the first one's values, in place."""
    if ranks() > 1:
        for value in values:
            dist.broadcast(value, src=0)


def average(parameters: Sequence[nn.Parameter]) -> None:
    """Average the gradients over processes, in place, as DistributedDataParallel does; a missing one counts as zero."""
    if ranks() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)
        parameter.grad /= ranks()
