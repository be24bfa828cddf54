"""What stands on the page, section by section: which layers, quality, other runs, what is unknown, how to reproduce.

`timing.py` has the sections about time. A section whose numbers are not known holds the reason instead. Pure; knows no HTML.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from layercard.cost.speedup import SpeedupReport
from layercard.report.forgetting import forgetting_cell, forgetting_rows
from layercard.report.page import figures
from layercard.report.page.pieces import UNKNOWN, Figure, Page, Section, Table
from layercard.report.page.timing import break_even, costs, pairs, where_time_goes
from layercard.report.phases import layers_in_run, phase_rows
from layercard.report.verdict import verdict_of
from layercard.report.words import interval_words, layers_words, loss_words, percent, sentence, times


def contents(report: SpeedupReport, others: Sequence[tuple[str, SpeedupReport]] = ()) -> Page:
    """Return what the page shows of `report`, beside `others` (name, report) where there are any."""
    model, data = (_of(report, part, name) for part, name in (("model", "id"), ("data", "name")))
    made = [
        _layers(report), where_time_goes(report), pairs(report), break_even(report), _quality(report), costs(report),
        *([_beside(report, others)] if others else []), _unknown(report), _reproduce(report),
    ]  # fmt: skip
    return Page(
        title=f"{model or 'LoRA'} on {data}" if data else model or "LoRA",
        subtitle=f"LoRA on {layers_words(report.layers, report.num_layers)}",
        verdict=verdict_of(report),
        sections=tuple(made),
    )


def _layers(report: SpeedupReport) -> Section:
    score = _shown_score(report)
    values = report.scores[score] if score else None
    cached = bool(report.prefix_cache.get("on"))
    picture = figures.layer_picture(values, report.num_layers, report.layers, cached=cached)
    chosen = layers_words(report.layers, report.num_layers)
    entry = min(report.layers)
    edge = f" Dashed line: the gradient entry, layer {entry}, below which nothing is adapted." if entry else ""
    prefix = " Hatched: the layers below it, kept in the prefix cache." if picture.prefix else ""
    what = f"Importance by {score} of every layer" if score else "Every layer; none was scored in this run"
    figure = Figure(
        "layers", f"Which layers are adapted: {chosen}", f"{what}, from the input on the left to the output on the right."
        f" Adapted are {chosen}.{edge}{prefix}", picture,
        f"{what}. Filled, with a diamond under them: the adapted layers.{edge}{prefix}",
        _layer_table(report, score),
    )  # fmt: skip
    reason = report.placement.get("reason")
    lead = sentence(f"Why these: {reason}") if reason else ""
    return Section("layers", "Which layers", lead, figure, _phases(report))


def _phases(report: SpeedupReport) -> tuple[Table, ...]:
    header = ("optimizer steps", "layers that learn", "backpropagation ends at", "seconds of a step, observed")
    rows = tuple(phase_rows(report))
    return (Table("The schedule", header, rows, (3,)),) if rows else ()


def _shown_score(report: SpeedupReport) -> str | None:
    wanted = report.placement.get("score")
    return wanted if wanted in report.scores else next(iter(report.scores), None)


def _layer_table(report: SpeedupReport, score: str | None) -> Table:
    names = [score, *(name for name in report.scores if name != score)] if score else []
    rows = []
    for layer in range(report.num_layers):
        values = tuple(f"{report.scores[name][layer]:.4g}" for name in names if name)
        rows.append((str(layer), *values, "adapted" if layer in report.layers else "frozen"))
    header = ("layer", *(f"importance by {name}" for name in names), "in this run")
    return Table("Layers and their scores", header, tuple(rows), range(1, 1 + len(names)), long=report.num_layers > 12)


def _quality(report: SpeedupReport) -> Section:
    quality, expected = report.quality, report.placement.get("expected") or {}
    known: list[tuple[str, float, Sequence[float] | None, str]] = []
    if quality.get("share_in_trial") is not None:
        name = f"in the trial, after {quality.get('steps', '?')} steps (measured)"
        known.append((name, quality["share_in_trial"], quality.get("interval_in_trial"), "circle"))
    if quality.get("share_kept") is not None:
        name = f"at the end of the run ({quality.get('kind', UNKNOWN)})"
        known.append((name, quality["share_kept"], quality.get("interval"), "diamond"))
    if expected.get("share_kept") is not None:
        known.append(("on a Layer Card", expected["share_kept"], None, "square"))
    losses = _losses(report)
    lead = verdict_of(report).quality.sentence
    if not known:
        return Section("quality", "Quality", lead, None, losses)
    rows = tuple((name, percent(share), interval_words(i, share=True) if i else UNKNOWN) for name, share, i, _ in known)
    threshold = None if quality.get("kind") == "tried" else quality.get("threshold")
    spoken = "; ".join(f"{name}: {share}, interval {interval}" for name, share, interval in rows)
    figure = Figure(
        "ranges", "Share of all-layer LoRA's gain that the placed layers keep", spoken + ".",
        figures.range_picture(known, threshold),
        "Share of all-layer LoRA's gain in held-out loss; 100% is as good."
        + ("" if threshold is None else f" The dashed line is the threshold of {percent(threshold)}."),
        Table("Share of all-layer LoRA's gain kept", ("known from", "share", "interval"), rows, (1, 2)),
    )  # fmt: skip
    return Section("quality", "Quality", lead, figure, losses)


def _losses(report: SpeedupReport) -> tuple[Table, ...]:
    names = {
        "before": "before training",
        "all_layers": "all-layer LoRA, after the trial",
        "placed": "placed layers, after the trial",
        "placed_2x": "placed layers at twice the learning rate, after the trial",
    }
    found = report.quality.get("heldout_loss") or {}
    rows = [(words, loss_words(found[name])) for name, words in names.items() if found.get(name) is not None]
    final = report.quality.get("final_heldout_loss")
    if final is not None:
        rows.append(("placed layers, at the end of the run (the trainer's own evaluation)", loss_words(final)))
    losses = (Table("Held-out loss, measured", ("when", "loss"), tuple(rows), (1,)),) if rows else ()
    control = tuple(forgetting_rows(report.quality))
    header = ("when", "loss on control rows", "forgetting (rise)")
    return (*losses, Table("Forgetting, in nats a token", header, control, (1, 2))) if control else losses


def _beside(report: SpeedupReport, others: Sequence[tuple[str, SpeedupReport]]) -> Section:
    rows = []
    for name, other in (("this run", report), *others):
        verdict = verdict_of(other)
        share, loss = verdict.quality.share, verdict.quality.final_heldout_loss
        known = UNKNOWN if share is None else f"{percent(share)}, {verdict.quality.kind}"
        interval = UNKNOWN if other.interval is None else interval_words(other.interval)
        speed = UNKNOWN if other.step_speedup is None else times(other.step_speedup)
        layers = layers_in_run(other)
        rows.append(
            (
                name,
                layers,
                speed,
                interval,
                known,
                UNKNOWN if loss is None else loss_words(loss),
                forgetting_cell(other.quality),
            )
        )
    header = ("run", "layers", "speedup of a step", "interval", "gain kept", "held-out loss at the end", "forgetting")
    return Section("compare", "Beside other runs", "", None, (Table("Runs", header, tuple(rows), (2, 3, 5, 6)),))


def _unknown(report: SpeedupReport) -> Section:
    rows = [(sentence(unknown.words), sentence(unknown.reason)) for unknown in verdict_of(report).unknown]
    reason = report.quality.get("reason")
    if reason and report.quality.get("share_kept") is None:
        rows.append(("Share of the gain kept.", sentence(reason)))
    if not rows:
        return Section("unknown", "What is unknown", "Nothing that this report can hold.")
    return Section(
        "unknown", "What is unknown", "", None, (Table("What is unknown, and why", ("what", "why"), tuple(rows)),)
    )


def _reproduce(report: SpeedupReport) -> Section:
    run = report.run
    facts = [
        ("command", run.get("command")),
        ("started", run.get("started")),
        ("ended", run.get("ended") or ("not yet" if report.partial else None)),
        *_flat("model", run.get("model")), *_flat("data", run.get("data")), *_flat("adapter", run.get("adapter")),
        *_flat("training", run.get("training")), *_flat("device", run.get("device")),
        ("layers", ", ".join(map(str, report.layers))),
        ("strategy", report.placement.get("strategy")),
        ("Layer Cards", ", ".join(report.placement.get("cards") or ()) or "none"),
        ("placement digest", report.placement.get("digest")),
        *((f"version of {name}", version) for name, version in report.versions.items()),
    ]  # fmt: skip
    rows = tuple((name, _text(value)) for name, value in facts if value is not None)
    lead = "The run's own numbers stand below as report.json, whole."
    return Section("reproduce", "How to reproduce", lead, None, (Table("The run", ("what", "value"), rows),))


def _flat(name: str, values: Any) -> list[tuple[str, Any]]:
    return [(f"{name}: {key.replace('_', ' ')}", value) for key, value in (values or {}).items()]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _of(report: SpeedupReport, part: str, name: str) -> str | None:
    found = (report.run.get(part) or {}).get(name)
    return None if found is None else str(found)
