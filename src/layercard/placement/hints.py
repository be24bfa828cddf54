"""What a person should know about a placement, one line each."""

from __future__ import annotations

from layercard.placement.placement import LayerPlacement


def learning_rate_hint(placement: LayerPlacement) -> str | None:
    """Return the hint that fewer layers often want a higher learning rate or rank; None where none was left out."""
    if placement.layers == placement.every_layer:
        return None
    many = placement.many if placement.adaptable is None else f"{placement.many},"
    return f"With {many} adapted, a higher learning rate or rank is often wanted than for all of them."
