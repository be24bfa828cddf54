"""What the processes of one run agree on; in a single process every question has one answer."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist

from layercard.anatomy.layers import describe
from layercard.errors import PlacementError
from layercard.placement.placement import LayerPlacement

Value = TypeVar("Value")


def gathered(value: Value) -> list[Value]:
    """Return every rank's `value`, in the order of ranks. Every rank has to ask."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return [value]
    values: list[Value] = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def check_ranks_agree(placement: LayerPlacement) -> None:
    """Raise `PlacementError` on every rank where not all hold the same placement."""
    held = gathered((placement.digest(), describe(placement.layers, placement.num_layers)))
    if len({digest for digest, _ in held}) > 1:
        listed = "; ".join(f"rank {rank}: {layers}" for rank, (_, layers) in enumerate(held))
        raise PlacementError(
            f"The processes of this run placed different layers ({listed}). One run trains one placement. Give every "
            "process the same data and settings, or a placement.json."
        )
