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
"""Containers and tensors with more items are data, not counters, and keep their contents."""

Restorer = Callable[[], Any]


@contextmanager
def attributes_preserved(owner: object) -> Iterator[None]:
    """Put the attributes of `owner` back at exit as they were at entry."""
    held = vars(owner)
    seen: dict[int, Restorer] = {}
    before = {name: _restorer(value, seen) for name, value in held.items()}
    try:
        yield
    finally:
        for name in [name for name in held if name not in before]:
            del held[name]
        held.update({name: restore() for name, restore in before.items()})


def _restorer(value: Any, seen: dict[int, Restorer]) -> Restorer:
    """Return a function that gives `value` its present contents again and returns it."""
    if id(value) in seen:
        return seen[id(value)]
    seen[id(value)] = lambda: value  # cuts cycles
    if isinstance(value, dict) and len(value) <= MOST_ITEMS:
        seen[id(value)] = _dictionary(value, seen)
    elif isinstance(value, list | deque) and len(value) <= MOST_ITEMS:
        seen[id(value)] = _sequence(value, seen)
    elif isinstance(value, set) and len(value) <= MOST_ITEMS:
        seen[id(value)] = _set(value)
    elif type(value) is torch.Tensor and value.numel() <= MOST_ITEMS:
        seen[id(value)] = _tensor(value)
    return seen[id(value)]


def _dictionary(value: dict[Any, Any], seen: dict[int, Restorer]) -> Restorer:
    items = [(key, _restorer(item, seen)) for key, item in value.items()]

    def restore() -> dict[Any, Any]:
        value.clear()
        value.update((key, item()) for key, item in items)
        return value

    return restore


def _sequence(value: list[Any] | deque[Any], seen: dict[int, Restorer]) -> Restorer:
    items = [_restorer(item, seen) for item in value]

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
