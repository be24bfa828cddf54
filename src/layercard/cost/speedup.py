"""`SpeedupReport`: what placement saved and cost in one run; read from and written to report.json.

A field that is not known is None, and `unavailable` says why under the field's name (`baseline.peak_bytes` for
one inside another). The same keys stand in the file, in `to_dict` and in the attributes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from layercard.anatomy.layers import describe
from layercard.errors import LayercardError
from layercard.sizes import bytes_text

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class StepCost:
    """What one step costs: forward and backward of one micro-batch, without optimizer step and all-reduce."""

    step_seconds: float | None = None
    """Median seconds of a step."""
    peak_bytes: int | None = None
    """Most bytes held at once in a step; `memory_method` of the report says how they were counted."""
    trainable_parameters: int | None = None
    step_seconds_spread: float | None = None
    """Interquartile range of the seconds of a step."""


@dataclass(frozen=True)
class Saving:
    """Where the speed comes from: shares of the baseline's step time that each part takes off."""

    adapters: float | None = None
    """Fewer adapters, the gradient entry left where the host has it."""
    backward: float | None = None
    """Backpropagation ending at the lowest adapted layer."""
    prefix_cache: float | None = None
    """Activations of the frozen prefix read back instead of computed."""


@dataclass(frozen=True)
class SpeedupReport:
    """All-layer LoRA against the placed run, measured in that run; frozen."""

    layers: tuple[int, ...]
    num_layers: int
    adaptable: tuple[int, ...] = ()
    """The layers that have adapters in all-layer LoRA; empty in reports of releases that did not say."""
    elsewhere: Sequence[Mapping[str, Any]] = ()
    """What trains outside the placed layers, and what placement took out there: `where`, `stack`, `trains`,
    `trainable_parameters` and `share`."""
    step_speedup: float | None = None
    """Seconds of an all-layer step over seconds of a placed one: median of pairs run one after the other."""
    interval: tuple[float, float] | None = None
    """Where the median of the paired ratios lies with `interval_coverage` probability."""
    interval_coverage: float | None = None
    pairs: int = 0
    end_to_end_speedup: float | None = None
    """The same over all planned steps, and where training has ended over those that were run, with probe and overhead on the
    placed side."""
    baseline: StepCost = field(default_factory=StepCost)
    placed: StepCost = field(default_factory=StepCost)
    quality: Mapping[str, Any] = field(default_factory=lambda: {"kind": "unknown"})
    """The share of all-layer LoRA's gain that the placed layers keep, and how that is known; `layercard.quality.verdict`
    names the keys."""
    probe_seconds: float = 0.0
    overhead_seconds: float = 0.0
    """What layercard took inside `train()`: checks, loading the timed batches, timing."""
    break_even_steps: int | None = None
    """Optimizer steps after which probe and overhead are earned back."""
    observed_step_seconds: float | None = None
    """Mean seconds of the real training's optimizer steps, the first left out."""
    planned_steps: int | None = None
    steps_run: int | None = None
    """Optimizer steps that this training has run: fewer than planned where it was stopped early; None in older reports."""
    micro_batches: int | None = None
    """Micro-batches of the planned steps, and where training has ended of those that were run; None in older reports."""
    backward_layers: tuple[int, ...] | None = None
    """Layers that ran backward in the first real step."""
    gradient_entry: Mapping[str, Any] = field(default_factory=dict)
    prefix_cache: Mapping[str, Any] = field(default_factory=dict)
    """Whether the prefix was cached, why not, what it held, and the measured speedup of a cached step."""
    saving: Saving = field(default_factory=Saving)
    memory_method: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)
    """What was trained, how and where: `model`, `data`, `adapter`, `training`, `device`, `started`, `ended`, `command`."""
    placement: Mapping[str, Any] = field(default_factory=dict)
    """Why these layers: what placement.json holds beside the layers, and its digest."""
    scores: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """The importance of every layer by each score that was probed."""
    predicted: Mapping[str, Any] = field(default_factory=dict)
    """What was predicted of a step before it was timed: `step_speedup`, and `phases` as shares of an all-layer step."""
    timing: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Seconds of each timed step by variant; the same place in every list is one pair, on one batch."""
    schedule: Sequence[Mapping[str, Any]] = ()
    """The phases of a schedule: optimizer steps from `begins` to before `ends`, the `layers` that learn, `gradient_entry` and
    `observed_step_seconds`. Empty where the same layers learn in the whole run."""
    phases: Mapping[str, Mapping[str, float]] | None = None
    """Seconds of a step's phases, of `baseline` and `placed`."""
    seconds_saved: float | None = None
    """Over as many steps, probe and overhead taken off; negative where the run got slower."""
    verdict: Mapping[str, Any] = field(default_factory=dict)
    """What all of this says, in sentences: `speed`, `quality`, `notes`, and `unknown` by reason."""
    unavailable: Mapping[str, str] = field(default_factory=dict)
    partial: bool = True
    """True until training has ended."""
    schema_version: int = SCHEMA_VERSION

    def to_dict(self) -> dict[str, Any]:
        """Return what report.json holds; lists for tuples, `schema_version` first."""
        values = asdict(self)
        for name in ("layers", "adaptable", "elsewhere", "schedule", "interval", "backward_layers"):
            values[name] = None if values[name] is None else list(values[name])
        return {"schema_version": values.pop("schema_version"), **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SpeedupReport:
        """Build from what report.json holds, ignoring keys added later; raise `LayercardError` if it cannot."""
        if values.get("schema_version") != SCHEMA_VERSION:
            raise LayercardError(
                f"The report has schema_version {values.get('schema_version')!r}; this layercard reads "
                f"{SCHEMA_VERSION}. Read it with the layercard that wrote it."
            )
        known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        for name, kind in (("baseline", StepCost), ("placed", StepCost), ("saving", Saving)):
            known[name] = kind(**{f.name: values[name].get(f.name) for f in fields(kind)})
        for name in ("layers", "interval", "backward_layers"):
            known[name] = None if values.get(name) is None else tuple(values[name])
        for name in ("adaptable", "elsewhere", "schedule"):
            known[name] = tuple(values.get(name, ()))
        return cls(**known)

    @property
    def counted_steps(self) -> int | None:
        """Optimizer steps over which seconds are summed: the planned ones, and where training has ended those run."""
        return self.planned_steps if self.partial or self.steps_run is None else self.steps_run

    def unexplained(self) -> list[str]:
        """Return the fields that are None without a reason in `unavailable`; none in a sound report."""
        return [name for name in _nulls(self.to_dict()) if name not in self.unavailable]

    def __str__(self) -> str:
        parts = [self.verdict[part] for part in ("speed", "quality")] if self.verdict else []
        quality = parts[1]["headline"] if parts else quality_text(self)
        rows = [
            ("", "layers", "step", "peak memory", "trainable", "speedup", "quality"),
            ("all-layer LoRA", _every(self), *_cells(self.baseline), "1.00x", "reference"),
            ("placed", _layers(self), *_cells(self.placed), speedup_text(self), quality),
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, *(part["sentence"] for part in parts), *self.verdict.get("notes", ())])


def _nulls(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        if value is None:
            yield f"{prefix}{name}"
        elif name in ("baseline", "placed", "saving"):
            yield from _nulls(value, f"{name}.")


def _layers(report: SpeedupReport) -> str:
    return describe(report.layers, report.num_layers).split(" ", 1)[1].rsplit(" of ", 1)[0]


def _every(report: SpeedupReport) -> str:
    if len(report.adaptable) in (0, report.num_layers):
        return f"0–{report.num_layers - 1}"
    return describe(report.adaptable, report.num_layers).split(" ", 1)[1].rsplit(" of ", 1)[0]


def _cells(cost: StepCost) -> tuple[str, str, str]:
    return seconds_text(cost.step_seconds), bytes_text(cost.peak_bytes), count_text(cost.trainable_parameters)


def speedup_text(report: SpeedupReport) -> str:
    """Return the speedup, `not measured` where it is unknown."""
    return "not measured" if report.step_speedup is None else f"{report.step_speedup:.2f}x"


def quality_text(report: SpeedupReport) -> str:
    """Return the kind of the quality and what is known of it; `unknown` is said, never left blank."""
    quality = report.quality
    details = []
    if quality.get("share_kept") is not None:
        spread = "({:.0%} to {:.0%}) ".format(*quality["interval"]) if quality.get("interval") else ""
        details.append(f"{quality['share_kept']:.0%} {spread}of the gain")
    if quality.get("final_heldout_loss") is not None:
        details.append(f"held-out loss {quality['final_heldout_loss']:.4g} at the end")
    return ": ".join([str(quality["kind"]), *([", ".join(details)] if details else [])])


def seconds_text(seconds: float | None) -> str:
    """Return seconds as people read them."""
    if seconds is None:
        return "unknown"
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def count_text(count: int | None) -> str:
    """Return a count with its thousands apart."""
    return "unknown" if count is None else f"{count:,}"
