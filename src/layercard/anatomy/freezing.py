"""Stops the layers below one from learning, and lets them learn again: `frozen_below`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

from layercard.anatomy.layers import LayerStack


@contextmanager
def frozen_below(stack: LayerStack, entry: int) -> Iterator[None]:
    """Leave every parameter of the layers below `entry` as it is inside the block; gradients they hold are dropped.

    An optimizer passes over parameters without a gradient, and keeps what it knows of them.
    """
    below = chain.from_iterable(layer.parameters() for layer in stack.layers[:entry])
    learning = [parameter for parameter in below if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
        parameter.grad = None
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
