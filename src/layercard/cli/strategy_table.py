"""What every strategy is predicted to cost at the planned number of layers, with and without the prefix cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pluggy
from rich.console import Console
from rich.table import Table

from layercard import plugins
from layercard.anatomy.layers import describe
from layercard.cost.predict import UnitCosts, predict_step_ratio
from layercard.placement.choose import choose_placement, needed_score
from layercard.placement.placement import LayerPlacement
from layercard.scores.base import LayerScores
from layercard.settings import PlacementSettings


@dataclass(frozen=True)
class StrategyCost:
    """Step times over all-layer LoRA's, of the layers that a strategy chooses."""

    strategy: str
    layers: tuple[int, ...]
    step_ratio: float
    cached_step_ratio: float
    """From the second epoch on, the prefix cached."""


def strategy_costs(
    placement: LayerPlacement,
    settings: PlacementSettings,
    scores: Mapping[str, LayerScores],
    manager: pluggy.PluginManager,
    *,
    checkpointing: bool,
    units: UnitCosts,
) -> list[StrategyCost]:
    """Return the costs of the placement and of every strategy that needs no score that was not probed."""
    strategies = plugins.strategies(manager)
    found = {"planned": placement.layers}
    for name in strategies:
        wanted = _asking_for(name, placement, settings)
        if needed_score(wanted, strategies) in {None, *scores}:
            found[name] = choose_placement(wanted, placement.num_layers, strategies=strategies, scores=scores).layers
    return [_cost(n, layers, placement.num_layers, settings, checkpointing, units) for n, layers in found.items()]


def _asking_for(name: str, placement: LayerPlacement, settings: PlacementSettings) -> PlacementSettings:
    count = len(placement.layers)
    return PlacementSettings.from_user(
        strategy=name,
        num_layers=None if name == "cumulative" else count,
        min_entry=min(settings.min_entry, placement.num_layers - count),
        random_seed=settings.random_seed,
    )


def _cost(
    name: str,
    layers: tuple[int, ...],
    num_layers: int,
    settings: PlacementSettings,
    checkpointing: bool,
    units: UnitCosts,
) -> StrategyCost:
    plain, cached = (
        predict_step_ratio(
            num_layers,
            layers,
            checkpointing=checkpointing,
            gradient_entry=settings.gradient_entry,
            recompute_above_entry=settings.checkpointing_above_entry != "off",
            prefix_cached=prefix_cached,
            units=units,
        )
        for prefix_cached in (False, True)
    )
    return StrategyCost(name, layers, plain, cached)


def document(costs: list[StrategyCost]) -> list[dict[str, Any]]:
    """Return what `layercard plan --json` prints of them."""
    return [asdict(cost) | {"layers": list(cost.layers)} for cost in costs]


def show_strategies(console: Console, costs: list[StrategyCost], num_layers: int) -> None:
    """Print a row a strategy."""
    table = Table(title="Predicted step time over all-layer LoRA's", title_justify="left", box=None, pad_edge=False)
    for heading in ("strategy", "layers", "step", "prefix cached"):
        table.add_column(heading, justify="left" if heading in {"strategy", "layers"} else "right")
    for cost in costs:
        layers = describe(cost.layers, num_layers).split(" ", 1)[1].rsplit(" of ", 1)[0]
        table.add_row(cost.strategy, layers, f"{cost.step_ratio:.2f}", f"{cost.cached_step_ratio:.2f}")
    console.print(table)
