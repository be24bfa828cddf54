"""How layers are named to people: `describe` says which, `how_many` says how many. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any


def describe(layers: Any, num_layers: int) -> str:
    """Return layers as people read them: `layers 3, 15–29 of 0–29`."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    text = ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs)
    return f"layer{'' if len(layers) == 1 else 's'} {text} of 0–{num_layers - 1}"


def how_many(count: int, num_layers: int, adaptable: Collection[int] | None) -> str:
    """Return a number of layers as people read it: `10 of 30 layers`, or `6 of the 12 layers that have adapters, of 48`.

    `adaptable` are the layers that have adapters, None where every layer does.
    """
    if adaptable is None or len(adaptable) == num_layers:
        return f"{count} of {num_layers} layers"
    have = "layer that has" if len(adaptable) == 1 else "layers that have"
    return f"{count} of the {len(adaptable)} {have} adapters, of {num_layers}"
