"""Shows a `SpeedupReport` on the console: its verdict, then speed and quality in the same row of a table."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from layercard.cost.speedup import SpeedupReport, StepCost, count_text, seconds_text, speedup_text
from layercard.errors import one_of
from layercard.report.elsewhere import beside
from layercard.report.forgetting import forgetting_cells
from layercard.report.lines import drawn, say
from layercard.report.verdict import QualityVerdict, verdict_of
from layercard.report.words import layers_words, percent, times
from layercard.sizes import bytes_text


def show(report: SpeedupReport, console: Console | None = None) -> None:
    """Print it to `console`, or to standard output; every line has layercard's prefix."""
    console = console or Console(highlight=False)
    adapted = f"Adapted: {layers_words(report.layers, report.num_layers)}{beside(report.elsewhere)}."
    say([adapted, *verdict_of(report).lines(), *details(report), *drawn(table(report), console.width)], console)


def table(report: SpeedupReport) -> Table:
    """Return the table: a row for all-layer LoRA, one for the placed run."""
    made = Table(box=None, pad_edge=False)
    made.add_column("run", overflow="fold")
    for name in ("step", "memory", "trained", "speed", "quality"):
        made.add_column(name, overflow="fold", justify="left" if name == "quality" else "right")
    quality = quality_cell(verdict_of(report).quality)
    forgotten = forgetting_cells(report.quality)
    if forgotten is not None:
        made.add_column("forgetting", overflow="fold")
    every, placed = ((cell,) for cell in forgotten) if forgotten is not None else ((), ())
    made.add_row("all-layer LoRA", *_costs(report.baseline), "1.00x", "reference", *every)
    made.add_row("placed", *_costs(report.placed), speedup_text(report), quality, *placed)
    return made


def _costs(cost: StepCost) -> tuple[str, str, str]:
    return seconds_text(cost.step_seconds), bytes_text(cost.peak_bytes), count_text(cost.trainable_parameters)


def quality_cell(quality: QualityVerdict) -> str:
    """Return what a table says of quality: the share kept and the kind of evidence, or `unproven`."""
    if quality.share is None or quality.kind == "reference":
        return quality.kind
    return f"{percent(quality.share)}, {quality.kind}"


def details(report: SpeedupReport) -> list[str]:
    """Return what stands beside the verdict: the cache's speedup, when costs are earned back, the steps observed."""
    lines = _baseline(report)
    if "step_speedup" in report.prefix_cache:
        speedup = report.prefix_cache["step_speedup"]
        lines.append(f"A step whose examples were seen before, their prefix cached, is {times(speedup)} as fast.")
    lost = report.seconds_saved is not None and report.seconds_saved < 0  # the verdict says it then
    if report.break_even_steps is not None and not lost:
        lines.append(f"Probe and timing are earned back after {report.break_even_steps:,} steps.")
    if report.observed_step_seconds is not None:
        lines.append(f"Observed: {seconds_text(report.observed_step_seconds)} an optimizer step.")
    return lines


def _baseline(report: SpeedupReport) -> list[str]:
    """Return what all-layer LoRA is here, where that is not plain: it is what the configuration would have trained."""
    lines = []
    if 0 < len(report.adaptable) < report.num_layers:
        lines.append(
            f"All-layer LoRA adapts the {len(report.adaptable)} layers, of {report.num_layers}, that have adapters."
        )
    shed = [part["where"] for part in report.elsewhere if not part["trains"]]
    if shed:
        lines.append(f"All-layer LoRA also adapts {one_of(shed)}, which the placed run does not.")
    return lines
