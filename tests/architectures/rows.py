"""Rows for every kind of model, and how they are collated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from shapes import collate_pairs, pairs
from tiny import collate, tiny_examples

Example = dict[str, Any]
Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Kind:
    """How to make so many examples, and a batch of them."""

    examples: Callable[[int], list[Example]]
    collate: Callable[[list[Example]], Batch]


def heard(count: int, *, name: str, shape: tuple[int, ...]) -> list[Example]:
    """Sounds with targets of several lengths."""
    generator = torch.Generator().manual_seed(0)
    return [{name: torch.randn(shape, generator=generator), "labels": row["labels"]} for row in pairs(count)]


def seen(count: int, *, name: str, shape: tuple[int, ...]) -> list[Example]:
    """Pictures, or sounds, of three classes."""
    generator = torch.Generator().manual_seed(0)
    return [{name: torch.randn(shape, generator=generator), "labels": i % 3} for i in range(count)]


def shown(count: int, *, token: int, tokens: int) -> list[Example]:
    """Texts that begin with a picture, whose tokens have no labels."""
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "input_ids": [token] * tokens + row["input_ids"],
            "labels": [-100] * tokens + row["labels"],
            "pixel_values": torch.randn(3, 8, 8, generator=generator),
        }
        for row in tiny_examples(count)
    ]


def stack_with_targets(examples: list[Example], *, name: str) -> Batch:
    width = max(len(e["labels"]) for e in examples)
    labels = [[*e["labels"], *[-100] * (width - len(e["labels"]))] for e in examples]
    return {name: torch.stack([e[name] for e in examples]), "labels": torch.tensor(labels)}


def stack_with_classes(examples: list[Example], *, name: str) -> Batch:
    return {name: torch.stack([e[name] for e in examples]), "labels": torch.tensor([e["labels"] for e in examples])}


def stack_with_text(examples: list[Example]) -> Batch:
    return collate(examples) | {"pixel_values": torch.stack([e["pixel_values"] for e in examples])}


TEXT = Kind(tiny_examples, collate)
CLASSES = Kind(partial(tiny_examples, encoder=True), collate)
PAIRS = Kind(pairs, collate_pairs)


def speech(name: str, *shape: int) -> Kind:
    """Sound in, tokens out."""
    return Kind(partial(heard, name=name, shape=shape), partial(stack_with_targets, name=name))


def classes_of(name: str, *shape: int) -> Kind:
    """Pictures or sound in, a class out."""
    return Kind(partial(seen, name=name, shape=shape), partial(stack_with_classes, name=name))


def pictures(token: int, tokens: int) -> Kind:
    """Text after a picture of so many tokens."""
    return Kind(partial(shown, token=token, tokens=tokens), stack_with_text)
