"""Context managers that leave a model and the random state as they were found, also on failure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from layercard.random_state import random_state


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Run forward and backward passes in the block and leave no trace of them in `model` or the random state.

    Put back are gradients, the values of buffers and of parameters that train, the mode of every module, and the
    random state. Costs a copy of buffers and trainable parameters.
    """
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    values = [(p, p.detach().clone()) for p in model.parameters() if p.requires_grad]
    buffers = [(m, name, b, b.clone()) for m in model.modules() for name, b in m.named_buffers(recurse=False)]
    modes = [(module, module.training) for module in model.modules()]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        with random_state():
            yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        with torch.no_grad():
            for parameter, value in values:
                parameter.copy_(value)
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer.copy_(value)  # a forward may have put another tensor there
        for module, mode in modes:
            module.training = mode


def clear_gradients(model: nn.Module) -> None:
    """Drop the gradients of every parameter now in `model`."""
    for parameter in model.parameters():
        parameter.grad = None


def trainable_parameters(model: nn.Module) -> int:
    """Return how many numbers of `model` train; under ZeRO-3, which leaves a rank parameters without numbers, on all ranks."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return sum(int(vars(parameter).get("ds_numel", parameter.numel())) for parameter in trained)
