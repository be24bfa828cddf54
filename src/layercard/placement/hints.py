"""What a person should know about a placement, one line each."""

from __future__ import annotations

from layercard.placement.placement import LayerPlacement


def learning_rate_hint(placement: LayerPlacement) -> str | None:
    """Return the hint that fewer layers often want a higher learning rate or rank; None where every layer is adapted."""
    if placement.is_all:
        return None
    return (
        f"With {len(placement.layers)} of {placement.num_layers} layers adapted, a higher learning rate or rank than for "
        "all-layer LoRA is often wanted."
    )
