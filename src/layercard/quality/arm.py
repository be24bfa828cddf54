"""`Arm`: one short training on trial: its own values of the parameters that train, and an optimizer for them.

Arms share the model. An arm in force has its values under the model's parameters (`Parameter.data` points at them) and
its gradients on them; out of force, the parameters hold again the very tensors they held before. So several arms can
take turns, step by step, and the model is bit for bit what it was. What differs between arms beside values, such as
which layers have adapters, is a context manager (`entered`) of the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Entered: TypeAlias = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class ArmSetup:
    """What arms have in common: the model and the run's own way of training it."""

    model: nn.Module
    micro_step: Callable[[int], None]
    """Runs forward and backward of the micro-batch of a number; gradients add up."""
    steps_each: int
    """Micro-batches in an optimizer step."""
    optimizer: Callable[[], torch.optim.Optimizer]
    """Returns a new optimizer of the run's kind for what trains now."""
    max_grad_norm: float
    """Gradients are clipped to this norm; not at all where it is 0."""
    scaler: Callable[[], Any]
    """Returns a new loss scaler: a `torch.amp.GradScaler`, one that is not enabled where the run has none."""
    owned: Callable[[torch.optim.Optimizer, Any], AbstractContextManager[object]]
    """Makes optimizer and scaler those that the run's own step sees."""
    shared: Callable[[Sequence[Tensor]], None]
    """Gives every process the first one's values."""
    averaged: Callable[[Sequence[nn.Parameter]], None]
    """Averages gradients over processes."""


class Arm:
    """One training on trial, from the values that the parameters have when it is made.

    Parameters: `entered` puts in force which layers have adapters and what else distinguishes the arm; `rate` multiplies
    the learning rate. What `entered` makes trainable may be less from one optimizer step to the next, never more than at first.
    """

    def __init__(self, setup: ArmSetup, entered: Entered, *, rate: float = 1.0) -> None:
        self._setup, self._entered = setup, entered
        self._pending = 0
        self._scaler = setup.scaler()
        with entered():
            self._parameters = [p for p in setup.model.parameters() if p.requires_grad]
            self._values = [p.detach().clone() for p in self._parameters]
            self._gradients: list[Tensor | None] = [None] * len(self._values)
            setup.shared(self._values)
            with self._swapped():
                self.optimizer = setup.optimizer()
        for group in self.optimizer.param_groups:
            group["lr"] *= rate
        self.taken = 0
        """Micro-batch steps taken so far."""

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Train this arm inside the block; an optimizer step that is due is taken at its end."""
        with self._entered(), self._swapped(), self._setup.owned(self.optimizer, self._scaler):
            yield
            if self._pending == self._setup.steps_each:
                self._update()

    @contextmanager
    def judged(self) -> Iterator[None]:
        """Hold the trained model still inside the block, with the values that its optimizer evaluates."""
        with self.in_force(), torch.no_grad(), _evaluating(self.optimizer):
            yield

    def step(self, number: int) -> None:
        """Run the micro-batch of this number, while in force."""
        self._setup.micro_step(number)
        self.taken += 1
        self._pending += 1

    @contextmanager
    def _swapped(self) -> Iterator[None]:
        found = [(p.data, p.grad) for p in self._parameters]
        for parameter, value, gradient in zip(self._parameters, self._values, self._gradients, strict=True):
            parameter.grad = None
            parameter.data, parameter.grad = value, gradient
        try:
            yield
        finally:
            self._values = [p.data for p in self._parameters]
            self._gradients = [p.grad for p in self._parameters]
            for parameter, (value, gradient) in zip(self._parameters, found, strict=True):
                parameter.grad = None
                parameter.data, parameter.grad = value, gradient

    def _update(self) -> None:
        """Take an optimizer step as the run's loop does: average, unscale, clip, step."""
        self._pending = 0
        learning = [p for p in self._parameters if p.requires_grad]  # under a schedule fewer than at first
        self._setup.averaged(learning)
        self._scaler.unscale_(self.optimizer)
        if self._setup.max_grad_norm > 0:
            torch.nn.utils.clip_grad_norm_(learning, self._setup.max_grad_norm)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        for parameter in self._parameters:
            parameter.grad = None


def advance(arms: Sequence[Arm], until: int) -> None:
    """Let the arms take turns until each has taken `until` micro-batch steps."""
    for number in range(min(arm.taken for arm in arms), until):
        for arm in arms if number % 2 == 0 else reversed(arms):
            if arm.taken == number:
                with arm.in_force():
                    arm.step(number)


@contextmanager
def _evaluating(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Schedule-free optimizers hold other values for evaluation than for training."""
    switch: Any = optimizer
    modes = hasattr(switch, "train") and hasattr(switch, "eval")
    if modes:
        switch.eval()
    try:
        yield
    finally:
        if modes:
            switch.train()
