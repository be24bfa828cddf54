"""What `layercard measure` found, as tables for people and as a document for machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from layercard.anatomy.layers import describe
from layercard.cli.output import Output
from layercard.cli.strategy_table import quality_word
from layercard.cost.phases import PHASES
from layercard.cost.timing import Ratio
from layercard.placement.placement import LayerPlacement
from layercard.report.words import as_fast, interval_words, percent, times
from layercard.sizes import bytes_text
from layercard.study.inference import InferenceCost
from layercard.study.measure import Measurement, RunCost
from layercard.study.settings import StudySettings
from layercard.study.steps import PHASE_ROUNDS

REFERENCE = "reference"
SERVING = "Serving engines batch requests and have kernels for adapters: expect other numbers there."
Placements = Mapping[str, LayerPlacement]
FOLDED = {"run": 6, "layers": 6, "as fast": 7, "first token": 8, "tokens/s after it": 8, "its parameters": 10}
"""Columns that are folded in a narrow terminal, and the fewest cells that each keeps."""


def show(output: Output, measured: Measurement, placed: Placements, settings: StudySettings) -> None:
    """Print the tables, what they say in a sentence each, and what was measured how."""
    output.say("Measured: a training step beside all-layer LoRA's")
    output.console.print(_speeds(measured, placed))
    output.say("Where the time of a step goes")
    output.console.print(_phases(measured.runs))
    output.say("What it takes")
    output.console.print(_sizes(measured.runs))
    if measured.runs[0].inference is not None:
        output.say("Answers, one prompt at a time, adapters not merged")
        output.console.print(_answers(measured.runs))
        output.say(SERVING)
    for run in measured.runs:
        if run.speedup is not None:
            output.say(_sentence(run.name, run.speedup))
        if run.obstacle is not None:
            output.say(f"{run.name}: backpropagation does not end at its lowest layer.")
            output.say(run.obstacle)
    for line in _conditions(measured, settings):
        output.say(line)
    output.say("Quality is unproven: nothing was trained to an end. Fewer layers learn less in as many steps.")


def _table(headings: Sequence[str], left: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        text = heading in left
        narrowest = FOLDED.get(heading)
        table.add_column(
            heading,
            justify="left" if text else "right",
            overflow="fold",
            no_wrap=narrowest is None,
            min_width=narrowest,
        )
    return table


def _speeds(measured: Measurement, placed: Placements) -> Table:
    table = _table(("run", "layers", "step", "as fast", "interval", "quality"), ("run", "layers", "quality"))
    for run in measured.runs:
        if run.speedup is None:
            table.add_row(run.name, "all", _ms(run.step_seconds), times(1.0), "", REFERENCE)
            continue
        layers = describe(placed[run.name].layers, placed[run.name].num_layers).split(" ", 1)[1].rsplit(" of ", 1)[0]
        speed = _short(run.speedup)
        interval = interval_words((run.speedup.low, run.speedup.high))
        table.add_row(run.name, layers, _ms(run.step_seconds), speed, interval, quality_word(placed[run.name]))
    return table


def _phases(runs: Sequence[RunCost]) -> Table:
    table = _table(("run", *PHASES, "tokens/s"), ("run",))
    for run in runs:
        table.add_row(run.name, *(_ms(run.phases[phase]) for phase in PHASES), f"{run.tokens_per_second:,.0f}")
    return table


def _sizes(runs: Sequence[RunCost]) -> Table:
    table = _table(("run", "peak memory", "adapter", "its parameters"), ("run",))
    for run in runs:
        size = f"{run.adapter_bytes / 1e6:,.2f} MB"
        table.add_row(run.name, bytes_text(run.peak_bytes), size, f"{run.adapter_parameters:,}")
    return table


def _answers(runs: Sequence[RunCost]) -> Table:
    table = _table(("run", "first token", "as fast", "tokens/s after it", "as fast"), ("run",))
    for run in runs:
        cost = run.inference
        assert cost is not None  # all runs answer, or none
        ratios = (
            [times(1.0)] * 2 if run.speedup is None else [_short(cost.first_token_speedup), _short(cost.decode_speedup)]
        )
        table.add_row(run.name, _ms(cost.first_token_seconds), ratios[0], f"{cost.tokens_per_second:,.1f}", ratios[1])
    return table


def _short(ratio: Ratio) -> str:
    return ratio.told if ratio.told == "too noisy to tell" else times(ratio.value)


def _sentence(name: str, ratio: Ratio) -> str:
    interval = f"interval {interval_words((ratio.low, ratio.high))}"
    if ratio.told == "too noisy to tell":
        return f"{name}: too noisy to tell whether a step is faster ({interval})."
    return f"{name}: a step is {as_fast(ratio.value)} as with all-layer LoRA ({interval})."


def _conditions(measured: Measurement, settings: StudySettings) -> list[str]:
    checkpointing = "with" if settings.gradient_checkpointing else "without"
    ratio = next(run.speedup for run in measured.runs if run.speedup is not None)
    tokens = sum(measured.tokens) / len(measured.tokens)
    return [
        f"On {measured.device} in {measured.dtype}, {checkpointing} gradient checkpointing, LoRA of rank {settings.rank}.",
        f"A batch has {measured.rows} rows, {tokens:,.0f} tokens on average without padding.",
        f"{ratio.pairs} steps of each, in turn on the same batches; medians of steps, and of their ratios pair by pair.",
        f"Each interval by itself holds the true ratio with {percent(ratio.coverage)}.",
        f"Phases come from {PHASE_ROUNDS} other steps, clocked apart, and need not add up to a step.",
        "Peak memory holds the optimizer's state"
        + ("; it is a count of live tensors." if "approximation" in measured.memory_method else "."),
    ]


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.1f} ms" if seconds < 10 else f"{seconds:,.1f} s"


def document(measured: Measurement, placed: Placements, settings: StudySettings) -> dict[str, Any]:
    """Return what `--json` prints of it."""
    return {
        "device": measured.device,
        "dtype": measured.dtype,
        "clock": "wall clock",
        "memory_method": measured.memory_method,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "rank": settings.rank,
        "target_modules": None if settings.target_modules is None else list(settings.target_modules),
        "batch_size": measured.rows,
        "batch_tokens": list(measured.tokens),
        "phase_steps": PHASE_ROUNDS,
        "runs": [_run(run, placed.get(run.name)) for run in measured.runs],
    }


def _run(run: RunCost, placement: LayerPlacement | None) -> dict[str, Any]:
    return {
        "name": run.name,
        "layers": None if placement is None else list(placement.layers),
        "step_seconds": run.step_seconds,
        "seconds": list(run.seconds),
        "tokens_per_second": run.tokens_per_second,
        "phases": dict(run.phases),
        "peak_bytes": run.peak_bytes,
        "adapter_parameters": run.adapter_parameters,
        "adapter_bytes": run.adapter_bytes,
        "speedup": _ratio(run.speedup),
        "gradient_entry": None if placement is None or run.obstacle is not None else placement.entry,
        "gradient_entry_obstacle": run.obstacle,
        "inference": _inference(run),
        "quality": REFERENCE if placement is None else quality_word(placement),
    }


def _ratio(ratio: Ratio | None) -> dict[str, Any] | None:
    if ratio is None:
        return None
    interval = [ratio.low, ratio.high]
    return {"value": ratio.value, "interval": interval, "coverage": ratio.coverage, "verdict": ratio.told}


def _inference(run: RunCost) -> dict[str, Any] | None:
    cost: InferenceCost | None = run.inference
    if cost is None:
        return None
    first, later = (None, None) if run.speedup is None else (cost.first_token_speedup, cost.decode_speedup)
    return {
        "first_token_seconds": cost.first_token_seconds,
        "tokens_per_second": cost.tokens_per_second,
        "first_token_speedup": _ratio(first),
        "decode_speedup": _ratio(later),
    }
