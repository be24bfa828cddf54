"""`verdict_of`: one statement of what a run's report says, the same on the console, in HTML, Markdown and trackers.

Three questions are answered in this order: how fast, at what quality, and what is unknown and why. Quality comes from
the best evidence there is: a measured share of all-layer LoRA's gain, else the trial's prediction, else a Layer Card, else
it is called unproven. Every reason stands once. Pure: reads no clock, no file and no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from layercard.cost.speedup import SpeedupReport
from layercard.report.forgetting import forgetting_sentence
from layercard.report.phases import schedule_sentence, trial_of_schedule
from layercard.report.words import (
    as_fast,
    counted_words,
    duration,
    field_words,
    interval_words,
    loss_words,
    percent,
    plural,
    sentence,
)

Speed = Literal["faster", "slower", "too noisy to tell", "not measured", "all layers"]
Evidence = Literal["measured", "predicted", "Layer Card", "unproven", "reference"]
ALL_LAYERS = "Every layer is adapted, which is all-layer LoRA itself."
NOT_WORTH_SAYING = {"phases", "saving.prefix_cache"}
"""Fields whose absence only the page and report.json explain."""
PARTIAL = "Training had not ended when this was written."


@dataclass(frozen=True)
class SpeedVerdict:
    """How fast; `headline` is a few words, `sentence` says all of it."""

    kind: Speed
    headline: str
    sentence: str
    seconds_lost: float | None = None
    """Where the run got slower through layercard, by how much."""


@dataclass(frozen=True)
class QualityVerdict:
    """At what quality, and from where that is known."""

    kind: Evidence
    headline: str
    sentence: str
    share: float | None = None
    """Of all-layer LoRA's gain; None where it is unproven."""
    interval: tuple[float, float] | None = None
    final_heldout_loss: float | None = None


@dataclass(frozen=True)
class Unknown:
    """What is not known for one reason."""

    reason: str
    fields: tuple[str, ...]
    """Names of report.json's fields."""

    @property
    def words(self) -> str:
        """What the fields are called."""
        return ", ".join(field_words(name) for name in self.fields)


@dataclass(frozen=True)
class RunVerdict:
    """What a report says, in sentences."""

    speed: SpeedVerdict
    quality: QualityVerdict
    notes: tuple[str, ...]
    unknown: tuple[Unknown, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return what report.json holds under `verdict`; lists for tuples."""
        values = asdict(self)
        values["quality"]["interval"] = None if self.quality.interval is None else list(self.quality.interval)
        values["notes"] = list(self.notes)
        values["unknown"] = [{"reason": u.reason, "fields": list(u.fields)} for u in self.unknown]
        return values

    def lines(self) -> list[str]:
        """Return the statement for people, a sentence or two a line; reasons that were said already are left out."""
        said = [f"Speed: {self.speed.sentence}", f"Quality: {self.quality.sentence}", *self.notes]
        rest = [
            u for u in self.unknown if not any(u.reason in line for line in said) and set(u.fields) - NOT_WORTH_SAYING
        ]
        return said + [sentence(f"not known ({u.words}): {u.reason}") for u in rest]


def verdict_of(report: SpeedupReport) -> RunVerdict:
    """Return what `report` says."""
    said = (schedule_sentence(report), forgetting_sentence(report.quality), PARTIAL if report.partial else None)
    notes = tuple(note for note in said if note is not None)
    return RunVerdict(_speed(report), _quality(report), notes, unknowns(report))


def unknowns(report: SpeedupReport) -> tuple[Unknown, ...]:
    """Return the reasons of what is not known, each with its fields, in the order in which the fields stand."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in report.unavailable.items():
        by_reason.setdefault(reason, []).append(name)
    return tuple(Unknown(reason, tuple(names)) for reason, names in by_reason.items())


def _is_all_layer(report: SpeedupReport) -> bool:
    """Whether the run was all-layer LoRA from its beginning to its end; one that is resumed may begin after a rise."""
    return len(report.layers) == report.num_layers and not any(
        len(phase["layers"]) < report.num_layers for phase in report.schedule
    )


def _speed(report: SpeedupReport) -> SpeedVerdict:
    spent = report.probe_seconds + report.overhead_seconds
    took = f"Probe and timing took {duration(spent)}."
    if _is_all_layer(report):
        lost = f"So the run got {duration(spent)} slower through layercard." if spent else ""
        return SpeedVerdict("all layers", "all-layer LoRA", f"{ALL_LAYERS} {lost}".strip(), spent or None)
    if report.step_speedup is None or report.interval is None:
        return SpeedVerdict("not measured", "not measured", _unmeasured(report, took))
    low, high = report.interval
    measured = f"{as_fast(report.step_speedup)} as with all-layer LoRA ({_interval(report)})"
    if low <= 1 <= high:
        text = f"Too noisy to tell whether {_what(report).lower()} is faster: {measured}. {took}"
        return SpeedVerdict("too noisy to tell", "too noisy to tell", text)
    return _told_apart(report, f"{_what(report)} is {measured}.", took)


def _what(report: SpeedupReport) -> str:
    return "The mean step of the schedule" if report.schedule else "A step"


def _told_apart(report: SpeedupReport, step: str, took: str) -> SpeedVerdict:
    """The verdict where the interval is on one side of 1."""
    assert report.step_speedup is not None
    headline, faster = as_fast(report.step_speedup), report.step_speedup > 1
    if report.interval is not None:
        headline = f"{headline} ({interval_words(report.interval)})"
    if report.seconds_saved is None or report.end_to_end_speedup is None or report.counted_steps is None:
        return SpeedVerdict("faster" if faster else "slower", headline, f"{step} {took}")
    run = counted_words(report)
    if report.seconds_saved >= 0:
        saved = f"{duration(report.seconds_saved)} are saved"
        whole = f"Over {run}, with probe and timing, the run is {as_fast(report.end_to_end_speedup)}: {saved}."
        return SpeedVerdict("faster" if faster else "slower", headline, f"{step} {whole}")
    lost = -report.seconds_saved
    earned = (
        "" if report.break_even_steps is None else f" They are earned back after {report.break_even_steps:,} steps."
    )
    why = f"{took}{earned} Over {run} the run got {duration(lost)} slower through layercard."
    return SpeedVerdict("slower", f"{duration(lost)} slower", f"{step} {why}", lost)


def _interval(report: SpeedupReport) -> str:
    assert report.interval is not None
    coverage = f"{percent(report.interval_coverage)} interval, " if report.interval_coverage else ""
    return f"{interval_words(report.interval)}, {coverage}{plural(report.pairs, 'pair')}"


def _unmeasured(report: SpeedupReport, took: str) -> str:
    reason = report.unavailable.get("step_speedup")
    said = "Not measured." if reason is None else f"Not measured. {sentence(reason)}"
    foretold = report.predicted.get("step_speedup")
    predicted = "" if foretold is None else f" Predicted for a step: {as_fast(foretold)}."
    return f"{said}{predicted} {took}" if report.probe_seconds + report.overhead_seconds else f"{said}{predicted}"


def _quality(report: SpeedupReport) -> QualityVerdict:
    quality, final = report.quality, report.quality.get("final_heldout_loss")
    loss = "" if final is None else f" Held-out loss at the end: {loss_words(final)}, measured."
    if _is_all_layer(report):
        return QualityVerdict("reference", "as all-layer LoRA", f"{ALL_LAYERS}{loss}", 1.0, None, final)
    share, interval = quality.get("share_kept"), quality.get("interval")
    if share is not None:
        kind: Evidence = "measured" if quality.get("kind") == "measured" else "predicted"
        spread = f" ({interval_words(interval, share=True)})" if interval else ""
        text = f"{percent(share)}{spread} of all-layer LoRA's gain in held-out loss kept, {_from(quality, kind)}."
        ends = None if interval is None else (interval[0], interval[1])
        return QualityVerdict(
            kind, f"{percent(share)} kept{spread}, {kind}", f"{text}{_under(quality)}{loss}", share, ends, final
        )
    expected = report.placement.get("expected") or {}
    reason = quality.get("reason")
    tried = trial_of_schedule(quality)
    because = f" {tried}" if tried else f" Not tried out in this run: {sentence(reason)}" if reason else ""
    if expected.get("share_kept") is not None:
        kept = expected["share_kept"]
        text = f"{_card(report, expected)}, unproven on these data.{because}{loss}"
        return QualityVerdict("Layer Card", f"{percent(kept)} kept on a Layer Card", text, kept, None, final)
    headline = f"unproven; {percent(quality['share_in_trial'])} in a short trial" if tried else "unproven"
    return QualityVerdict("unproven", headline, f"Unproven.{because}{loss}", None, None, final)


def _from(quality: Mapping[str, Any], kind: Evidence) -> str:
    if kind == "measured" or quality.get("steps") is None:
        return kind
    trial = f"predicted from a trial of {plural(quality['steps'], 'step')}"
    if quality.get("examples") is None:
        return trial
    where = (
        "the eval set" if quality.get("heldout_from") == "eval_dataset" else "the training set, held back in the trial"
    )
    return f"{trial} on {plural(quality['examples'], 'example')} of {where}"


def _under(quality: Mapping[str, Any]) -> str:
    threshold = quality.get("threshold")
    share = quality.get("share_kept")
    if threshold is None or share is None or share >= threshold:
        return ""
    return f" That is under the threshold of {percent(threshold)}."


def _card(report: SpeedupReport, expected: Mapping[str, Any]) -> str:
    cards = ", ".join(report.placement.get("cards") or ()) or "a Layer Card"
    lowest = expected.get("lowest_share_kept")
    least = (
        f" ({percent(lowest)} on the card where it was least)"
        if lowest is not None and len(cards.split(", ")) > 1
        else ""
    )
    metric = f" in {expected['metric']}" if expected.get("metric") else ""
    outcome = f" by `{expected['outcome']}`" if expected.get("outcome") else ""
    word = "Layer Cards" if "," in cards else "Layer Card"
    return f"{percent(expected['share_kept'])}{least} of all-layer LoRA's gain{metric} was kept{outcome} on the {word} {cards}"
