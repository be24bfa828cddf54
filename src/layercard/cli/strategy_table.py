"""What every strategy is predicted to cost at the planned number of layers, with and without the prefix cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from layercard.anatomy.layers import describe
from layercard.cost.predict import StepPrediction, UnitCosts, mean_prediction, predict_step
from layercard.errors import PlacementError
from layercard.placement.choose import choose_placement, needed_score
from layercard.placement.phases import shares
from layercard.placement.placement import LayerPlacement
from layercard.placement.strategies import StepRatio
from layercard.registry import Extensions
from layercard.report.words import times
from layercard.scores.base import LayerScores
from layercard.settings import PlacementSettings
from layercard.settings.checks import ALL, BUDGET
from layercard.settings.schedule import Rise

PLANNED = "planned"
"""The row of the placement itself."""


@dataclass(frozen=True)
class StrategyCost:
    """Step times over all-layer LoRA's, of the layers that a strategy chooses."""

    strategy: str
    layers: tuple[int, ...]
    step_ratio: float
    cached_step_ratio: float
    """From the second epoch on, the prefix cached."""


@dataclass(frozen=True)
class StepConditions:
    """What a step's prediction rests on beside the layers."""

    checkpointing: bool
    gradient_entry: bool
    """Whether backpropagation ends at the lowest adapted layer: not where something is trained below."""
    recompute_above_entry: bool
    units: UnitCosts
    all_layer_entry: bool
    """Whether that of all-layer LoRA ends at the lowest layer that has adapters."""
    rises: tuple[Rise, ...] = ()
    """The schedule of the run that is planned."""

    def predict(
        self, placement: LayerPlacement, layers: tuple[int, ...], *, prefix_cached: bool = False, resting: int = 0
    ) -> StepPrediction:
        """Return the step that adapts `layers` of the placement's model, beside that of all-layer LoRA."""
        return predict_step(
            placement.num_layers,
            layers,
            checkpointing=self.checkpointing,
            gradient_entry=self.gradient_entry,
            recompute_above_entry=self.recompute_above_entry,
            prefix_cached=prefix_cached,
            resting=resting,
            units=self.units,
            adaptable=placement.adaptable,
            all_layer_entry=self.all_layer_entry,
        )

    def planned(self, placement: LayerPlacement, *, prefix_cached: bool = False) -> StepPrediction:
        """Return the mean step of the placement under its schedule; without one, its step."""
        parts = []
        for share, learning in shares(placement, self.rises):
            resting = len(placement.layers) - len(learning.layers)
            step = self.predict(placement, learning.layers, prefix_cached=prefix_cached, resting=resting)
            parts.append((share, step))
        return mean_prediction(parts)

    def step_ratio(self, placement: LayerPlacement) -> StepRatio:
        """Return what predicts the step time of any layers of the placement's model."""
        return lambda layers: self.predict(placement, tuple(layers)).ratio


def strategy_costs(
    placement: LayerPlacement,
    settings: PlacementSettings,
    scores: Mapping[str, LayerScores],
    extensions: Extensions,
    conditions: StepConditions,
) -> tuple[list[StrategyCost], list[str]]:
    """Return the costs of the placement and of every strategy that needs no score that was not probed.

    Beside them a line for each strategy of a plugin whose layers cannot be used here.
    """
    strategies = extensions.strategies
    found, notes = {PLANNED: placement.layers}, []
    for name in strategies:
        if name in (BUDGET, ALL):
            continue  # they say themselves how many layers are adapted
        wanted = _asking_for(name, placement, settings)
        if needed_score(wanted, strategies) not in {None, *scores}:
            continue
        try:
            found[name] = choose_placement(
                wanted, placement.num_layers, strategies=strategies, scores=scores, adaptable=placement.adaptable
            ).layers
        except PlacementError as error:
            notes.append(f"Left out of the table: {error}")
    return [_cost(name, layers, placement, conditions) for name, layers in found.items()], notes


def _asking_for(name: str, placement: LayerPlacement, settings: PlacementSettings) -> PlacementSettings:
    count = len(placement.layers)
    return PlacementSettings.from_user(
        strategy=name,
        num_layers=None if name == "cumulative" else count,
        min_entry=min(settings.min_entry, placement.every_layer[-count]),
        random_seed=settings.random_seed,
    )


def _cost(name: str, layers: tuple[int, ...], placement: LayerPlacement, conditions: StepConditions) -> StrategyCost:
    if name == PLANNED:
        plain, cached = (conditions.planned(placement, prefix_cached=cached) for cached in (False, True))
    else:
        plain, cached = (conditions.predict(placement, layers, prefix_cached=cached) for cached in (False, True))
    return StrategyCost(name, layers, plain.ratio, cached.ratio)


def document(costs: list[StrategyCost]) -> list[dict[str, Any]]:
    """Return what `layercard plan --json` prints of them."""
    return [asdict(cost) | {"layers": list(cost.layers)} for cost in costs]


UNPROVEN = "unproven"
"""The quality of layers of which no Layer Card says what they reach."""


def quality_word(placement: LayerPlacement) -> str:
    """Return what Layer Cards lead one to expect of the placement: the share of all-layer LoRA's gain that is kept."""
    share = (placement.expected or {}).get("share_kept")
    return UNPROVEN if share is None else f"{share:.0%} kept"


def show_strategies(
    console: Console,
    costs: list[StrategyCost],
    num_layers: int,
    quality: str,
    memory: Mapping[str, Mapping[str, str]],
) -> None:
    """Print a row a strategy.

    `quality` is that of the planned layers, and of others that are the same; `memory` has further columns: by heading, what
    stands there by strategy.
    """
    console.print("Predicted: how fast a step is beside all-layer LoRA's" + (", and peak memory" if memory else ""))
    table = Table(box=None, pad_edge=False)
    for heading in ("strategy", "layers", "speed", "prefix cached", *memory, "quality"):
        table.add_column(heading, justify="left" if heading in {"strategy", "layers", "quality"} else "right")
    planned = costs[0].layers
    for cost in costs:
        layers = describe(cost.layers, num_layers).split(" ", 1)[1].rsplit(" of ", 1)[0]
        speeds = [times(1 / ratio) for ratio in (cost.step_ratio, cost.cached_step_ratio)]
        further = [cells[cost.strategy] for cells in memory.values()]
        word = quality if cost.layers == planned else UNPROVEN
        table.add_row(cost.strategy, layers, *speeds, *further, word)
    console.print(table)
