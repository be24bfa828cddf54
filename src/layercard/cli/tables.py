"""The table of layers that commands show."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from layercard.scores.base import LayerScores

BAR = 24
NO_SCORE = "–"
"""Stands where a layer holds no target module."""


def show_layers(console: Console, scores: Mapping[str, LayerScores], adapted: Collection[int] = ()) -> None:
    """Print a row a layer: each score's importance, a bar of the first one, and whether the layer is adapted."""
    shown = next(iter(scores.values()))
    table = Table(box=None, pad_edge=False)
    table.add_column("layer", justify="right")
    for name in scores:
        table.add_column(name, justify="right")
    table.add_column(f"importance by {shown.name}")
    if adapted:
        table.add_column("")
    lengths = bar_lengths(shown)
    for layer, length in enumerate(lengths):
        numbers = [_number(score.importance[layer]) for score in scores.values()]
        mark = ["adapted" if layer in adapted else ""] if adapted else []
        style = "bold" if layer in adapted else ""
        table.add_row(str(layer), *numbers, Text("█" * length, style="cyan"), *mark, style=style)
    console.print(table)


def bar_lengths(scores: LayerScores) -> list[int]:
    """Return bars of 0 … `BAR` cells; they start at zero, or at the lowest importance where that is negative.

    A layer without a score has no bar.
    """
    base = min(0.0, float(np.nanmin(scores.importance)))
    reach = float(np.nanmax(scores.importance)) - base
    if reach == 0:
        return [0] * len(scores.importance)
    return [int(cells) for cells in np.rint(np.nan_to_num(scores.importance - base) / reach * BAR)]


def _number(importance: float) -> str:
    return NO_SCORE if np.isnan(importance) else f"{importance:.4g}"
