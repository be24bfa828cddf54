"""What more time buys, by a score: the sets of layers that no other beats in both predicted step time and summed score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.bar import Bar
from rich.console import Console
from rich.table import Table

from layercard.anatomy.layers import describe
from layercard.placement.budget import front
from layercard.placement.choose import request_of
from layercard.placement.strategies import StepRatio
from layercard.scores.base import LayerScores
from layercard.settings import PlacementSettings

WIDTH = 20
"""Characters of the longest bar."""


@dataclass(frozen=True)
class FrontRow:
    """A set of layers, its predicted step time over all-layer LoRA's, and its share of what all layers hold of the score."""

    layers: tuple[int, ...]
    step_ratio: float
    score_share: float


def front_rows(
    settings: PlacementSettings,
    num_layers: int,
    scores: LayerScores | None,
    step_ratio: StepRatio,
    adaptable: tuple[int, ...] | None,
) -> list[FrontRow]:
    """Return at most ten sets over all budgets, the cheapest first, among the layers from `min_entry` up; none without scores."""
    if scores is None:
        return []
    any_budget = PlacementSettings.from_user(budget=1.0, min_entry=settings.min_entry)
    found = front(request_of(any_budget, num_layers, scores, adaptable, step_ratio))
    best = found[-1].worth
    return [FrontRow(o.layers, o.step_ratio, o.worth / best if best > 0 else 1.0) for o in found]


def document(rows: Sequence[FrontRow]) -> list[dict[str, Any]]:
    """Return what `layercard plan --json` prints of them."""
    return [{"layers": list(r.layers), "step_ratio": r.step_ratio, "score_share": r.score_share} for r in rows]


def show_front(console: Console, rows: Sequence[FrontRow], score: str, num_layers: int) -> None:
    """Print a row a set, with a bar as long as its share of the score.

    Step times are rounded up, so that a `budget` of what stands there allows the set.
    """
    console.print(
        f"What a larger `budget` buys by `{score}`; a share of the score is no measured quality", markup=False
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("budget", justify="right")
    table.add_column("share of the score", justify="right")
    table.add_column()
    table.add_column("layers")
    for row in rows:
        layers = describe(row.layers, num_layers).split(" ", 1)[1].rsplit(" of ", 1)[0]
        budget = math.ceil(100 * row.step_ratio - 1e-6) / 100
        table.add_row(f"{budget:.2f}", f"{row.score_share:.0%}", Bar(1, 0, row.score_share, width=WIDTH), layers)
    console.print(table)
