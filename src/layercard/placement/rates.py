"""Which learning rate fewer layers want: how many times all-layer LoRA's best rate theirs was, where that was measured.

From `benchmarks/validity`: six pairs of a small model and a data set, rates on a grid of powers of two, 30 steps of LoRA of
rank 8 with AdamW, on random sets of layers. It is a hint of where to look, and no rate is changed.
"""

from __future__ import annotations

from statistics import median

from layercard.placement.placement import LayerPlacement

WIDE = 0.42
"""The least share of layers that counts as a half."""
BEST_FACTORS = {"third": (1.0, 2.0, 2.0, 2.0, 2.0, 8.0), "half": (1.0, 1.0, 1.0, 2.0, 2.0, 4.0)}
"""By about which share of the layers was adapted, ascending: a pair's best rate over that of all layers."""


def learning_rate_hint(placement: LayerPlacement) -> str | None:
    """Return the hint that fewer layers often want a higher learning rate; None where none was left out."""
    every = placement.every_layer
    if placement.layers == every:
        return None
    factors = BEST_FACTORS["half" if len(placement.layers) / len(every) >= WIDE else "third"]
    many = placement.many if placement.adaptable is None else f"{placement.many},"
    best = f"over six pairs {min(factors):g}x to {max(factors):g}x was best"
    return f"With {many} adapted, try {median(factors):g}x the learning rate: {best}."
