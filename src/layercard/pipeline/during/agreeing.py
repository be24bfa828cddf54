"""What the processes of one run have to agree on before they train."""

from __future__ import annotations

from layercard.anatomy.layers import describe
from layercard.errors import PlacementError
from layercard.placement.placement import LayerPlacement
from layercard.ranks import gathered


def check_ranks_agree(placement: LayerPlacement) -> None:
    """Raise `PlacementError` on every rank where not all hold the same placement."""
    held = gathered((placement.digest(), describe(placement.layers, placement.num_layers)))
    if len({digest for digest, _ in held}) > 1:
        listed = "; ".join(f"rank {rank}: {layers}" for rank, (_, layers) in enumerate(held))
        raise PlacementError(
            f"The processes of this run placed different layers ({listed}). One run trains one placement. Give every "
            "process the same data and settings, or a placement.json."
        )
