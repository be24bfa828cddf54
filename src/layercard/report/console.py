"""Shows a `SpeedupReport` as a table on the console: speedup and quality in the same row, unknowns said."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from layercard.anatomy.layers import describe
from layercard.cost.speedup import (
    SpeedupReport,
    count_text,
    quality_text,
    seconds_text,
    speedup_text,
)
from layercard.errors import one_of
from layercard.report.elsewhere import beside
from layercard.sizes import bytes_text


def table(report: SpeedupReport) -> Table:
    """Return the table: a row for all-layer LoRA, one for the placed run."""
    made = Table(title="layercard", title_justify="left", caption=caption(report), caption_justify="left")
    made.add_column("run", overflow="fold", min_width=len("all-layer LoRA"))
    for name in ("step", "peak memory", "trained", "speedup", "quality"):
        made.add_column(name, overflow="fold")
    chosen = f"{describe(report.layers, report.num_layers)}{beside(report.elsewhere)}"
    for run, cost, speedup, quality in (
        ("all-layer LoRA", report.baseline, "1.00x", "reference"),
        (f"placed: {chosen}", report.placed, speedup_text(report), quality_text(report)),
    ):
        step, peak = seconds_text(cost.step_seconds), bytes_text(cost.peak_bytes)
        made.add_row(run, step, peak, count_text(cost.trainable_parameters), speedup, quality)
    return made


def caption(report: SpeedupReport) -> str:
    """Return the lines under the table: interval, end to end, costs, break-even, and why something is missing."""
    costs = f"probe {seconds_text(report.probe_seconds)}, overhead {seconds_text(report.overhead_seconds)}"
    lines = [f"A step is forward and backward of one micro-batch; {costs}."]
    if report.interval is not None:
        low, high = report.interval
        coverage = f"{report.interval_coverage:.0%} interval" if report.interval_coverage else "interval"
        lines.append(f"Speedup of a step: {low:.2f}x to {high:.2f}x ({coverage}, {report.pairs} pairs).")
    lines.extend(_baseline(report))
    if report.end_to_end_speedup is not None:
        lines.append(f"End to end: {report.end_to_end_speedup:.2f}x over {report.planned_steps} planned steps.")
    if "step_speedup" in report.prefix_cache:
        speedup = report.prefix_cache["step_speedup"]
        lines.append(f"Speedup of a step whose examples were seen before, their prefix cached: {speedup:.2f}x.")
    if report.break_even_steps is not None:
        lines.append(f"Probe and overhead are earned back after {report.break_even_steps} steps.")
    if report.observed_step_seconds is not None:
        lines.append(f"Observed: {seconds_text(report.observed_step_seconds)} an optimizer step.")
    lines.extend(_quality(report))
    reasons = [report.unavailable.get(name) for name in ("step_speedup", "saving.backward")]
    lines.extend(dict.fromkeys(reason for reason in reasons if reason is not None))
    return "\n".join(lines)


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


def _quality(report: SpeedupReport) -> list[str]:
    """Return what the share of the gain kept is, or why nothing is known of it."""
    said = report.quality.get("meaning") if report.quality.get("share_kept") is not None else None
    reason = report.quality.get("reason")
    return [said] if said else [f"Quality: {reason}"] if reason else []


def show(report: SpeedupReport, console: Console | None = None) -> None:
    """Print the table to `console`, or to standard output."""
    (console or Console()).print(table(report))
