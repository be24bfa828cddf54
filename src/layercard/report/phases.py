"""What reports say of a schedule: which layers learned in which steps, and how long those took."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from layercard.cost.speedup import SpeedupReport, seconds_text
from layercard.report.words import interval_words, layers_words, percent, plural, sentence


def schedule_sentence(report: SpeedupReport) -> str | None:
    """Return in a sentence which layers learn when; None without a schedule."""
    if not report.schedule:
        return None
    parts = [f"{layers} in steps {steps}" for steps, layers, *_ in phase_rows(report)]
    reached, planned = _reached(report), report.schedule[-1]["ends"]
    ended = (
        f" The run ended after step {reached:,} of {planned:,}." if reached is not None and reached < planned else ""
    )
    return f"Layers that learn: {'; '.join(parts)}.{ended}"


def layers_in_run(report: SpeedupReport) -> str:
    """Return the adapted layers, and those that learned at the end of a schedule where they were fewer."""
    words = layers_words(report.layers, report.num_layers)
    last = tuple(report.schedule[-1]["layers"]) if report.schedule else report.layers
    return words if last == tuple(report.layers) else f"{words}, at the end {layers_words(last, report.num_layers)}"


def _reached(report: SpeedupReport) -> int | None:
    """The last optimizer step of a training that has ended, counted from the run's first; None where it is not known."""
    if report.partial or report.steps_run is None or report.planned_steps is None:
        return None
    reached: int = report.schedule[-1]["ends"] - report.planned_steps + report.steps_run
    return reached


def trial_of_schedule(quality: Mapping[str, Any]) -> str | None:
    """Return in sentences what the trial of a schedule measured; None where none was tried."""
    if quality.get("kind") != "tried" or quality.get("share_in_trial") is None:
        return None
    interval = quality.get("interval_in_trial")
    kept = percent(quality["share_in_trial"]) + (f" ({interval_words(interval, share=True)})" if interval else "")
    return (
        f"After a trial of {plural(quality['steps'], 'step')} with its rises the schedule had kept {kept} of all-layer LoRA's "
        f"gain. {sentence(quality['reason'])}"
    )


def phase_rows(report: SpeedupReport) -> Iterator[tuple[str, str, str, str]]:
    """Yield a row a phase: optimizer steps counted from 1, layers, where backpropagation ends, seconds of a step."""
    for phase in report.schedule:
        entry = phase["gradient_entry"]
        ends = f"layer {entry['layer']}" if entry.get("moved") else "as the host has it"
        layers = layers_words(phase["layers"], report.num_layers)
        yield f"{phase['begins'] + 1:,}–{phase['ends']:,}", layers, ends, seconds_text(phase["observed_step_seconds"])
