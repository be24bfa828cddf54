"""The page's sections about time: phases of a step, timed pairs, when placement pays, what a step costs."""

from __future__ import annotations

from typing import Any

from layercard.cost.speedup import SpeedupReport, count_text, seconds_text
from layercard.report.page import figures
from layercard.report.page.pieces import UNKNOWN, Figure, Section, Table
from layercard.report.words import PHASES, RUNS, counted_words, duration, interval_words, percent, sentence, times
from layercard.sizes import bytes_text

PHASE_NUMBERS = {phase: number for number, phase in enumerate(PHASES)}
SAVINGS = {"adapters": "fewer adapters", "backward": "a shorter backward pass", "prefix_cache": "the prefix cache"}


def where_time_goes(report: SpeedupReport) -> Section:
    """Return the phases of a step: measured where they were, else predicted, and called so."""
    predicted = (report.predicted or {}).get("phases")
    tables = (_savings(report),) if report.saving.adapters is not None or report.saving.backward is not None else ()
    if report.phases:
        return Section("time", "Where the time goes", "", _phases(report.phases, "Seconds, measured", "s"), tables)
    lead = _reason(report, "phases")
    if not predicted:
        return Section("time", "Where the time goes", lead, None, tables)
    said = f"{lead} What follows is predicted from the number of layers, not measured." if lead else ""
    return Section(
        "time", "Where the time goes", said, _phases(predicted, "Share of an all-layer step, predicted", ""), tables
    )


def _phases(phases: Any, unit: str, suffix: str) -> Figure:
    shown = {RUNS[run]: {name: float(value) for name, value in parts.items()} for run, parts in phases.items()}
    names = [name for name in PHASES if any(name in parts for parts in shown.values())]
    runs = tuple(shown)
    rows = tuple(
        (f"{letter(PHASE_NUMBERS[name])} {PHASES[name]}", *(_amount(shown[run].get(name), suffix) for run in runs))
        for name in names
    )
    totals = ("whole step", *(_amount(sum(shown[run].values()), suffix) for run in runs))
    spoken = "; ".join(
        f"{run}: " + ", ".join(f"{PHASES[n]} {_amount(v, suffix)}" for n, v in shown[run].items()) for run in runs
    )
    return Figure(
        "stacks", "Phases of a step, all-layer LoRA above, the placed layers below", f"{unit}. {spoken}.",
        figures.stack_picture(shown, PHASE_NUMBERS), f"{unit}. Letters are those of the table.",
        Table("Phases of a step", ("phase", *runs), (*rows, totals), (1, 2)),
    )  # fmt: skip


def letter(number: int) -> str:
    """Return the letter by which a phase is marked in the picture."""
    return "ABCDEFGH"[number]


def _amount(value: float | None, suffix: str) -> str:
    if value is None:
        return UNKNOWN
    return seconds_text(value) if suffix == "s" else f"{value:.1%}"


def _savings(report: SpeedupReport) -> Table:
    parts = {name: getattr(report.saving, name) for name in SAVINGS}
    rows = tuple((words, UNKNOWN if parts[name] is None else f"{parts[name]:.1%}") for name, words in SAVINGS.items())
    return Table("What took time off a step, as a share of an all-layer step, measured", ("by", "share"), rows, (1,))


def pairs(report: SpeedupReport) -> Section:
    """Return every timed pair of steps, their median and its interval."""
    heading, lead = "Step times, pair by pair", _reason(report, "step_speedup")
    timed = list(zip(report.timing.get("baseline", ()), report.timing.get("placed", ()), strict=False))
    if not timed or report.step_speedup is None or report.interval is None:
        if report.step_speedup is not None and report.interval is not None:
            measured = f"{times(report.step_speedup)} as fast ({interval_words(report.interval)})"
            lead = f"A step is {measured}; single times were not kept."
        return Section("pairs", heading, lead)
    ratios = [slow / fast for slow, fast in timed]
    said = f"{times(report.step_speedup)}, interval {interval_words(report.interval)}"
    rows = tuple((str(i + 1), seconds_text(a), seconds_text(b), times(a / b)) for i, (a, b) in enumerate(timed))
    figure = Figure(
        "pairs", f"Speedup of {len(timed)} pairs of steps", f"Median {said}. Ratios from {times(min(ratios))} to "
        f"{times(max(ratios))}.", figures.pair_picture(ratios, report.step_speedup, report.interval),
        "A dot is one pair: an all-layer and a placed step on the same batch, one after the other. The line is the median, "
        "the band its interval; the dashed line is no speedup.",
        Table("Pairs of steps", ("pair", "all-layer LoRA", "placed layers", "speedup"), rows, (1, 2, 3), long=len(rows) > 12),
    )  # fmt: skip
    coverage = "" if report.interval_coverage is None else f", with {percent(report.interval_coverage)} coverage"
    return Section("pairs", heading, f"Median of {len(timed)} pairs: {said}{coverage}.", figure)


def break_even(report: SpeedupReport) -> Section:
    """Return the seconds of both runs over the steps that are counted, and where the placed one catches up."""
    slow, fast, steps = report.baseline.step_seconds, report.placed.step_seconds, report.counted_steps
    heading = "When it pays"
    spent = report.probe_seconds + report.overhead_seconds
    if slow is None or fast is None or not steps or report.seconds_saved is None:
        reason = _reason(report, "break_even_steps")
        return Section("break-even", heading, f"Probe and timing took {duration(spent)}. {reason}".strip())
    each = float(report.run.get("training", {}).get("micro_batches_a_step") or 1)
    each = each if report.micro_batches is None else report.micro_batches / steps
    crossing = report.break_even_steps
    said = (
        "Probe and timing are not earned back: a placed step was not faster."
        if crossing is None
        else f"Probe and timing, {duration(spent)}, are earned back after {crossing:,} of {counted_words(report)}."
    )
    ends = steps * slow * each, steps * slow * each - report.seconds_saved
    placed = {0: spent, steps: ends[1]}
    if crossing is not None:  # steps of a schedule are not all as fast as their mean; both runs are level there
        placed |= {crossing: crossing * slow * each if report.schedule else spent + crossing * fast * each}
    points = sorted(n for n in placed if n <= steps)
    rows = tuple((f"{n:,}", duration(n * slow * each), duration(placed[n])) for n in points)
    figure = Figure(
        "lines", f"Seconds of both runs over {counted_words(report)}", said,
        figures.line_picture(steps, ends, spent, crossing),
        "Seconds over optimizer steps, from the measured micro-batches; the placed run starts behind by probe and timing.",
        Table("Time after so many steps", ("steps", "all-layer LoRA", "placed layers"), rows, (1, 2)),
    )  # fmt: skip
    return Section("break-even", heading, said, figure)


def costs(report: SpeedupReport) -> Section:
    """Return what a step of both runs costs."""
    rows = tuple(
        (
            words,
            seconds_text(cost.step_seconds),
            bytes_text(cost.peak_bytes),
            count_text(cost.trainable_parameters),
        )
        for words, cost in (("all-layer LoRA", report.baseline), ("placed layers", report.placed))
    )
    method = f"Memory: {report.memory_method}." if report.memory_method else _reason(report, "placed.peak_bytes")
    table = Table("What a step costs", ("run", "time of a micro-batch", "peak memory", "trainable"), rows, (1, 2, 3))
    return Section("costs", "Time, memory, parameters", method, None, (table,))


def _reason(report: SpeedupReport, name: str) -> str:
    return sentence(report.unavailable.get(name, ""))
