"""The polynomial-decay average of what trains, and judging a model by it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Averages parameters over steps: after step t the newest weighs (1 + γ) / (t + γ) (arXiv 1212.1824, section 4.2)."""

    def __init__(self, parameters: Sequence[nn.Parameter], gamma: float) -> None:
        self._averaged: dict[nn.Parameter, Tensor] = {p: p.detach().clone() for p in parameters}
        self._gamma, self._steps = gamma, 0

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters' present values."""
        self._steps += 1
        weight = min(1.0, (1 + self._gamma) / (self._steps + self._gamma))
        torch._foreach_lerp_(list(self._averaged.values()), [p.data for p in self._averaged], weight)

    def drop(self, parameters: Sequence[nn.Parameter]) -> None:
        """Judge these by their present values from now on; they no longer change."""
        for parameter in parameters:
            self._averaged.pop(parameter, None)

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Give the parameters their averages inside the block."""
        found = {p: p.data for p in self._averaged}
        for parameter, average in self._averaged.items():
            parameter.data = average
        try:
            yield
        finally:
            for parameter, value in found.items():
                parameter.data = value
