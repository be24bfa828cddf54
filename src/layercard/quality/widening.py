"""`wider`: the layers to adapt where a placement kept too little."""

from __future__ import annotations

import math
from collections.abc import Sequence

GROWTH = 0.5
"""How many layers are added, as a share of those adapted, rounded up."""


def wider(
    layers: Sequence[int],
    num_layers: int,
    *,
    ranked: Sequence[int] | None = None,
    min_entry: int = 0,
    adaptable: Sequence[int] | None = None,
) -> tuple[int, ...]:
    """Return `layers` and half as many again, ascending: the next by rank, or the next lower ones.

    Parameters: `adaptable` are the layers that have adapters (None: every layer); `ranked` the same, those to adapt first in
    front, where a score chose. Without it layers are added from the lowest adapted one downward, then between adapted ones
    from the top. None below `min_entry` is added. Returns all of them from `min_entry` up where no more are left.
    """
    deepest_first = sorted(range(num_layers) if adaptable is None else adaptable, reverse=True)
    downward = [*(layer for layer in deepest_first if layer < min(layers)), *deepest_first]
    order = dict.fromkeys(layer for layer in (ranked or downward) if layer >= min_entry and layer not in set(layers))
    return tuple(sorted([*layers, *list(order)[: math.ceil(len(layers) * GROWTH)]]))
