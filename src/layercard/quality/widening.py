"""`wider`: the layers to adapt where a placement kept too little."""

from __future__ import annotations

import math
from collections.abc import Sequence

GROWTH = 0.5
"""How many layers are added, as a share of those adapted, rounded up."""


def wider(
    layers: Sequence[int], num_layers: int, *, ranked: Sequence[int] | None = None, min_entry: int = 0
) -> tuple[int, ...]:
    """Return `layers` and half as many again, ascending: the next by rank, or the next lower ones.

    Parameters: `ranked` are all layers, those to adapt first in front, where a score chose; without it layers are added
    from the lowest adapted one downward, then between adapted ones from the top. None below `min_entry` is added.
    Returns all layers from `min_entry` up where no more are left.
    """
    downward = [*range(min(layers) - 1, -1, -1), *range(num_layers - 1, -1, -1)]
    order = dict.fromkeys(layer for layer in (ranked or downward) if layer >= min_entry and layer not in set(layers))
    return tuple(sorted([*layers, *list(order)[: math.ceil(len(layers) * GROWTH)]]))
