"""What a run says about its placement before it trains: which layers, why, the step time expected, what is unproven."""

from __future__ import annotations

from collections.abc import Sequence

from layercard.anatomy.layers import describe
from layercard.cost.predict import StepPrediction
from layercard.placement.phases import learning_after
from layercard.placement.placement import LayerPlacement
from layercard.placement.rates import learning_rate_hint
from layercard.probing.statistics import LayerStatistics
from layercard.quality.evidence import evidence_line
from layercard.report.lines import say
from layercard.report.words import as_fast
from layercard.settings import PlacementSettings
from layercard.settings.schedule import parse_schedule

LESS = 0.995
"""Below this share of all-layer LoRA's step time the prediction is said even where every layer is adapted."""


def announcement(
    placement: LayerPlacement,
    settings: PlacementSettings,
    *,
    predicted: StepPrediction,
    obstacle: str | None,
    elsewhere: Sequence[str],
    reused: bool,
    statistics: LayerStatistics | None,
    notes: Sequence[str] = (),
) -> list[str]:
    """Return the lines to say.

    Parameters: `predicted` is the step as this model will train, `obstacle` why backpropagation cannot end at the lowest
    adapted layer, or None; `elsewhere` are lines about what trains outside the layers, `notes` about how they were chosen.
    """
    lines = [f"Adapts {describe(placement.layers, placement.num_layers)}: {placement.reason}"]
    lines.extend(schedule_lines(placement, settings.schedule))
    lines.extend(notes)
    if reused:
        lines.append("This placement is that of the run that is resumed; nothing was probed.")
    if statistics is not None:
        lines.append(
            f"Probed {statistics.examples} examples, {statistics.tokens:,} tokens, in {statistics.seconds:.1f} s."
        )
        lines.extend(f"Note: {note}." for note in statistics.notes)
    lines.extend(elsewhere)
    if obstacle is not None and settings.schedule is not None:
        lines.append(f"Backpropagation does not end where layers stop learning, so no time is saved there: {obstacle}")
    elif placement.entry > 0 and settings.gradient_entry and obstacle is not None:
        lines.append(f"Backpropagation does not end at layer {placement.entry}, the lowest one adapted: {obstacle}")
    if not placement.is_all or predicted.ratio < LESS:
        lines.append(_step(placement, settings, predicted))
    return [*lines, *(line for line in (evidence_line(placement), learning_rate_hint(placement)) if line is not None)]


def schedule_lines(placement: LayerPlacement, schedule: str | None) -> list[str]:
    """Return a line for each rise of the schedule."""
    rises = parse_schedule(schedule)
    learning = [learning_after(placement, rise.share).layers for rise in rises]
    return [
        f"After {rise.after:.0%} of the steps only {describe(layers, placement.num_layers)} "
        f"learn{'s' * (len(layers) == 1)}; those below keep what they learned."
        for rise, layers in zip(rises, learning, strict=True)
    ]


def _step(placement: LayerPlacement, settings: PlacementSettings, predicted: StepPrediction) -> str:
    """What the step time is expected to be, and what was left out of it."""
    towers = "" if placement.other_stacks is None else ", the other stacks left out"
    measured = "it is measured when training starts." if settings.measure else "`measure` is off."
    mean = "the mean step of the schedule" if settings.schedule is not None else "a step"
    return f"Predicted{towers}: {mean} is {as_fast(predicted.speedup)} as with all-layer LoRA; {measured}"


def announce(
    placement: LayerPlacement,
    settings: PlacementSettings,
    *,
    predicted: StepPrediction,
    obstacle: str | None,
    elsewhere: Sequence[str] = (),
    reused: bool,
    statistics: LayerStatistics | None,
    notes: Sequence[str] = (),
) -> None:
    """Say it on standard error."""
    say(
        announcement(
            placement,
            settings,
            predicted=predicted,
            obstacle=obstacle,
            elsewhere=elsewhere,
            reused=reused,
            statistics=statistics,
            notes=notes,
        )
    )
