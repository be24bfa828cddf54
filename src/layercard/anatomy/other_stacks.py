"""Stacks of layers beside the one that is placed: a vision tower, an audio tower, an encoder beside its decoder.

Offers `other_stacks` and `in_towers`. A tower is the largest module that holds such a stack and nothing of the placed one,
so that what belongs to it alone (a merger inside a vision model) goes with it; a projector between the two belongs to
neither. Knows nothing of adapters.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import nn

from layercard.anatomy.layers import LayerStack, all_stacks


@dataclass(frozen=True)
class OtherStack:
    """A stack of layers that is not placed; `tower` is the dotted path of what belongs to it, both as in `model`."""

    path: str
    tower: str
    num_layers: int


def other_stacks(model: nn.Module, stack: LayerStack) -> tuple[OtherStack, ...]:
    """Return the stacks of `model` beside `stack`, in the order of the model's modules; none in most models."""
    placed = {id(module) for layer in stack.layers for module in layer.modules()}
    found = []
    for other in all_stacks(model):
        holds_placed = any(id(module) in placed for layer in other.layers for module in layer.modules())
        within_placed = stack.layer_of(other.path) is not None or other.path == stack.path
        if not holds_placed and not within_placed:
            found.append(OtherStack(other.path, _tower(other.path, stack.path), len(other)))
    return tuple(found)


def in_towers(name: str, towers: Collection[str]) -> bool:
    """Whether the module or parameter of this dotted path belongs to one of these towers."""
    return any(name == tower or name.startswith(f"{tower}.") for tower in towers)


def _tower(other: str, placed: str) -> str:
    """The path of `other` up to the first part in which it differs from `placed`."""
    ours, theirs = placed.split("."), other.split(".")
    shared = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), len(theirs) - 1)
    return ".".join(theirs[: shared + 1])
