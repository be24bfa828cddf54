"""How numbers and fields of a report are said, everywhere the same: one unit for each quantity.

A speedup is "1.94x as fast", a share is a percentage, seconds are what a person would say. Knows nothing of layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from layercard.anatomy.words import describe

if TYPE_CHECKING:
    from layercard.cost.speedup import SpeedupReport

FIELDS = {
    "step_speedup": "speedup of a step",
    "interval": "its interval",
    "interval_coverage": "the interval's coverage",
    "end_to_end_speedup": "speedup of the run",
    "seconds_saved": "seconds saved",
    "break_even_steps": "break-even step",
    "observed_step_seconds": "seconds of a real optimizer step",
    "planned_steps": "planned steps",
    "steps_run": "steps that were run",
    "micro_batches": "their micro-batches",
    "backward_layers": "layers that ran backward",
    "memory_method": "how memory is counted",
    "phases": "phases of a step",
    "saving.adapters": "share saved by fewer adapters",
    "saving.backward": "share saved by the shorter backward pass",
    "saving.prefix_cache": "share saved by the prefix cache",
}
COSTS = {
    "step_seconds": "step time",
    "peak_bytes": "peak memory",
    "trainable_parameters": "trainable parameters",
    "step_seconds_spread": "spread of the step time",
}
RUNS = {"baseline": "all-layer LoRA", "placed": "the placed layers"}
PHASES = {
    "forward": "forward",
    "recompute": "recompute",
    "backward": "backward",
    "adapters": "adapters",
    "head": "head and loss",
    "optimizer": "optimizer",
}


def field_words(name: str) -> str:
    """Return what a field of report.json is called, its own name where it was added later."""
    run, dot, cost = name.partition(".")
    if dot and run in RUNS and cost in COSTS:
        return f"{COSTS[cost]} of {RUNS[run]}"
    return FIELDS.get(name, name)


def times(ratio: float) -> str:
    """Return a speedup, such as `1.94x`."""
    return f"{ratio:.2f}x"


def as_fast(ratio: float) -> str:
    """Return a speedup in words."""
    return f"{times(ratio)} as fast"


def percent(share: float) -> str:
    """Return a share, such as `97%`."""
    return f"{share:.0%}"


def interval_words(interval: Sequence[float], *, share: bool = False) -> str:
    """Return both ends of an interval of a speedup, or of a share."""
    low, high = ((percent if share else times)(end) for end in interval)
    return f"{low} to {high}"


def duration(seconds: float) -> str:
    """Return seconds as people say them: milliseconds, seconds, minutes or hours."""
    size = abs(seconds)
    if 0 < size < 1:
        return f"{seconds * 1000:.0f} ms"
    if size < 120:
        return f"{seconds:.1f} s" if size else "0 s"
    return f"{seconds / 60:.1f} min" if size < 7200 else f"{seconds / 3600:.1f} h"


def loss_words(loss: float) -> str:
    """Return a loss in nats."""
    return f"{loss:.3f}"


def layers_words(layers: Sequence[int], num_layers: int) -> str:
    """Return the layers as they are always printed: `layers 15–29 of 0–29`."""
    return describe(tuple(layers), num_layers)


def counted_words(report: SpeedupReport) -> str:
    """Return the steps over which seconds are summed: `400 planned steps`, or those that were run of them."""
    if report.counted_steps is None or report.counted_steps == report.planned_steps:
        return plural(report.planned_steps or 0, "planned step")
    return f"{plural(report.counted_steps, 'step')} of {report.planned_steps or 0:,} planned"


def plural(count: int, word: str) -> str:
    """Return a count with its noun."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def sentence(text: str) -> str:
    """Return the text with a capital in front and a full stop behind."""
    text = text.strip()
    return text if not text else text[0].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
