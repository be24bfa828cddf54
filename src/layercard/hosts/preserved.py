"""Keeps what a step moves in a trainer: its counters, metrics and lists, whatever class defined them.

`attributes_preserved` puts back every attribute of an object: rebound names are bound as before, new ones removed, and
lists, dictionaries, sets, queues and small tensors get their contents back, each as the same object. Other objects
(models, optimizers, datasets) are left to themselves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

MOST_ITEMS = 100_000
"""An attribute with more items, its containers' contents counted, is data and not a counter; it keeps its contents."""

Restorer = Callable[[], Any]


@contextmanager
def attributes_preserved(owner: object) -> Iterator[None]:
    """Put the attributes of `owner` back at exit as they were at entry."""
    held = vars(owner)
    before = {name: _attribute(value) for name, value in held.items()}
    try:
        yield
    finally:
        for name in [name for name in held if name not in before]:
            del held[name]
        held.update({name: restore() for name, restore in before.items()})


def _attribute(value: Any) -> Restorer:
    try:
        return _Snapshot().restorer(value)
    except _TooLargeError:
        return lambda: value


class _TooLargeError(Exception):
    """More items than a counter has."""


class _Snapshot:
    """Functions that give the values met so far their present contents again and return them."""

    def __init__(self) -> None:
        self._seen: dict[int, Restorer] = {}
        self._left = MOST_ITEMS

    def restorer(self, value: Any) -> Restorer:
        if id(value) in self._seen:
            return self._seen[id(value)]
        self._seen[id(value)] = lambda: value  # cuts cycles
        if isinstance(value, dict):
            self._seen[id(value)] = self._dictionary(value)
        elif isinstance(value, list | deque):
            self._seen[id(value)] = self._sequence(value)
        elif isinstance(value, set):
            self._count(len(value))
            self._seen[id(value)] = _set(value)
        elif type(value) is torch.Tensor:
            self._count(value.numel())
            self._seen[id(value)] = _tensor(value)
        return self._seen[id(value)]

    def _count(self, items: int) -> None:
        self._left -= items
        if self._left < 0:
            raise _TooLargeError

    def _dictionary(self, value: dict[Any, Any]) -> Restorer:
        self._count(len(value))
        items = [(key, self.restorer(item)) for key, item in value.items()]

        def restore() -> dict[Any, Any]:
            value.clear()
            value.update((key, item()) for key, item in items)
            return value

        return restore

    def _sequence(self, value: list[Any] | deque[Any]) -> Restorer:
        self._count(len(value))
        items = [self.restorer(item) for item in value]

        def restore() -> list[Any] | deque[Any]:
            value.clear()
            value.extend(item() for item in items)
            return value

        return restore


def _set(value: set[Any]) -> Restorer:
    items = set(value)

    def restore() -> set[Any]:
        value.clear()
        value.update(items)
        return value

    return restore


def _tensor(value: torch.Tensor) -> Restorer:
    copy = value.detach().clone()

    def restore() -> torch.Tensor:
        with torch.no_grad():
            value.copy_(copy)
        return value

    return restore
