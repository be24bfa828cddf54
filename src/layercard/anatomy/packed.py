"""Looks into tensors of a quantizer's own kind, such as torchao's: they do not flatten and have no memory of their own."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def plain_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the plain tensors that a tensor is made of: integers and scales of a wrapper, otherwise the tensor itself."""
    if is_traceable_wrapper_subclass(tensor):
        for name in tensor.__tensor_flatten__()[0]:
            yield from plain_tensors(getattr(tensor, name))
    else:
        yield tensor
