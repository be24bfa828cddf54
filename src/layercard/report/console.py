"""Shows a `SpeedupReport` as a table on the console: speedup and quality in the same row, unknowns said."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from layercard.anatomy.layers import describe
from layercard.cost.speedup import (
    SpeedupReport,
    bytes_text,
    count_text,
    quality_text,
    seconds_text,
    speedup_text,
)


def table(report: SpeedupReport) -> Table:
    """Return the table: a row for all-layer LoRA, one for the placed run."""
    made = Table(title="layercard", title_justify="left", caption=caption(report), caption_justify="left")
    for name in ("run", "layers", "step", "peak memory", "trainable", "speedup", "quality"):
        made.add_column(name, overflow="fold")
    everything = describe(range(report.num_layers), report.num_layers)
    chosen = describe(report.layers, report.num_layers)
    for run, layers, cost, speedup, quality in (
        ("all-layer LoRA", everything, report.baseline, "1.00x", "reference"),
        ("placed", chosen, report.placed, speedup_text(report), quality_text(report)),
    ):
        step, peak = seconds_text(cost.step_seconds), bytes_text(cost.peak_bytes)
        made.add_row(run, layers, step, peak, count_text(cost.trainable_parameters), speedup, quality)
    return made


def caption(report: SpeedupReport) -> str:
    """Return the lines under the table: end to end, costs, break-even, and why something is missing."""
    costs = f"probe {seconds_text(report.probe_seconds)}, overhead {seconds_text(report.overhead_seconds)}"
    lines = [f"a step is forward and backward of one micro-batch; {costs}"]
    if report.end_to_end_speedup is not None:
        lines.append(f"end to end {report.end_to_end_speedup:.2f}x over {report.planned_steps} planned steps")
    if report.break_even_steps is not None:
        lines.append(f"probe and overhead are earned back after {report.break_even_steps} steps")
    if report.observed_step_seconds is not None:
        lines.append(f"observed {seconds_text(report.observed_step_seconds)} an optimizer step")
    for name in ("step_speedup", "gradient_entry", "saving.backward"):
        if name in report.unavailable:
            lines.append(f"{name}: {report.unavailable[name]}")
    return "\n".join(lines)


def show(report: SpeedupReport, console: Console | None = None) -> None:
    """Print the table to `console`, or to standard output."""
    (console or Console()).print(table(report))
