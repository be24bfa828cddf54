"""What a run says about its placement before it trains: which layers, why, the step time expected, what is unproven."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from layercard.anatomy.layers import describe
from layercard.cost.predict import UnitCosts, predict_step
from layercard.placement.hints import learning_rate_hint
from layercard.placement.placement import LayerPlacement
from layercard.probing.statistics import LayerStatistics
from layercard.quality.evidence import evidence_line
from layercard.settings import PlacementSettings


def announcement(
    placement: LayerPlacement,
    settings: PlacementSettings,
    *,
    checkpointing: bool,
    reused: bool,
    statistics: LayerStatistics | None,
    units: UnitCosts,
    notes: Sequence[str] = (),
) -> list[str]:
    """Return the lines to say; `notes` are about the Layer Cards that were consulted."""
    predicted = predict_step(
        placement.num_layers,
        placement.layers,
        checkpointing=checkpointing,
        gradient_entry=settings.gradient_entry,
        recompute_above_entry=settings.checkpointing_above_entry != "off",
        units=units,
    )
    lines = [f"layercard adapts {describe(placement.layers, placement.num_layers)}: {placement.reason}"]
    lines.extend(notes)
    if reused:
        lines.append("This placement is that of the run that is resumed; nothing was probed.")
    if statistics is not None:
        lines.append(
            f"Probed {statistics.examples} examples, {statistics.tokens:,} tokens, in {statistics.seconds:.1f} s."
        )
        lines.extend(f"Note: {note}." for note in statistics.notes)
    if not placement.is_all:
        lines.append(
            f"Predicted step time: {predicted.ratio:.2f} of all-layer LoRA's ({predicted.speedup:.2f}x faster); it is "
            "measured when training starts."
            if settings.measure
            else f"Predicted step time: {predicted.ratio:.2f} of all-layer LoRA's; `measure` is off."
        )
    return [*lines, *(line for line in (evidence_line(placement), learning_rate_hint(placement)) if line is not None)]


def announce(
    placement: LayerPlacement,
    settings: PlacementSettings,
    *,
    checkpointing: bool,
    reused: bool,
    statistics: LayerStatistics | None,
    units: UnitCosts,
    notes: Sequence[str] = (),
) -> None:
    """Say it on standard error."""
    console = Console(stderr=True, highlight=False)
    lines = announcement(
        placement,
        settings,
        checkpointing=checkpointing,
        reused=reused,
        statistics=statistics,
        units=units,
        notes=notes,
    )
    for line in lines:
        console.print(line, markup=False)
