"""Tensors of a quantizer's own kind are seen by what they are made of; torch's own pair of tensors stands for them."""

from __future__ import annotations

import torch
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

from layercard.anatomy.packed import plain_tensors
from layercard.cost.memory import peak_bytes


def test_a_tensor_is_itself_and_a_wrapper_what_it_holds_to_the_bottom() -> None:
    first, second, third = (torch.full((2,), float(i)) for i in range(3))
    assert [t is first for t in plain_tensors(first)] == [True]
    nested = TwoTensor(TwoTensor(first, second), third)
    assert [t.tolist() for t in plain_tensors(nested)] == [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]


def test_the_memory_of_every_wrapper_counts() -> None:
    """Wrappers have no memory of their own, so that all of them lie at one address."""
    model = nn.Module()
    for name in ("first", "second"):
        pair = TwoTensor(torch.zeros(8), torch.zeros(8))
        setattr(model, name, nn.Parameter(pair, requires_grad=False))
    assert peak_bytes(lambda: None, model, torch.device("cpu")) == 2 * 2 * 8 * 4
