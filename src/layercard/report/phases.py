"""What reports say of a schedule: which layers learned in which steps, and how long those took."""

from __future__ import annotations

from collections.abc import Iterator

from layercard.cost.speedup import SpeedupReport, seconds_text
from layercard.report.words import layers_words


def schedule_sentence(report: SpeedupReport) -> str | None:
    """Return in a sentence which layers learn when; None without a schedule."""
    if not report.schedule:
        return None
    parts = [f"{layers} in steps {steps}" for steps, layers, *_ in phase_rows(report)]
    return f"Layers that learn: {'; '.join(parts)}."


def phase_rows(report: SpeedupReport) -> Iterator[tuple[str, str, str, str]]:
    """Yield a row a phase: optimizer steps counted from 1, layers, where backpropagation ends, seconds of a step."""
    for phase in report.schedule:
        entry = phase["gradient_entry"]
        ends = f"layer {entry['layer']}" if entry.get("moved") else "as the host has it"
        layers = layers_words(phase["layers"], report.num_layers)
        yield f"{phase['begins'] + 1:,}–{phase['ends']:,}", layers, ends, seconds_text(phase["observed_step_seconds"])
