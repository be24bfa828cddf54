"""Puts a run's facts together into its `SpeedupReport`; every null gets its reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from layercard.cost.memory import memory_method
from layercard.cost.phased import earned_back, seconds_of
from layercard.cost.planned import PlannedSteps, StepsRun
from layercard.cost.speedup import SpeedupReport
from layercard.pipeline.during.identity import now, why_placed
from layercard.report.verdict import verdict_of
from layercard.versions import installed_versions

if TYPE_CHECKING:
    import torch

    from layercard.cost.predict import StepPrediction
    from layercard.pipeline.during.timing import Measurement
    from layercard.placement.placement import LayerPlacement
    from layercard.scores.base import LayerScores

PACKAGES = ("layercard", "torch", "transformers", "peft", "accelerate", "trl", "axolotl", "bitsandbytes")
NO_STEP = "No optimizer step has been run."
NO_PHASES = "Forward, backward and optimizer are not timed apart inside a run."


@dataclass
class RunFacts:
    """What is known of a run so far; the callback adds to it while the run trains."""

    placement: LayerPlacement
    measurement: Measurement
    quality: dict[str, Any]
    device: torch.device
    planned: PlannedSteps
    probe_seconds: float
    overhead_seconds: float
    gradient_entry: dict[str, Any]
    prefix_cache: dict[str, Any]
    run: StepsRun = field(default_factory=StepsRun)
    backward_layers: tuple[int, ...] | None = None
    observed: list[float] = field(default_factory=list)
    """Seconds of the optimizer steps run so far, the first left out."""
    elsewhere: Sequence[Mapping[str, Any]] = ()
    """What trains, or was taken out, outside the placed stack."""
    partial: bool = True
    identity: dict[str, Any] = field(default_factory=dict)
    """What `run_identity` said of the run, with the time at which it started."""
    scores: Mapping[str, LayerScores] = field(default_factory=dict)
    prediction: StepPrediction | None = None
    schedule: Callable[[], list[dict[str, Any]]] | None = None
    """Says what is known of the phases of the run's schedule; None where it has none."""

    def finish(
        self, log_history: Sequence[Mapping[str, Any]], prefix_cache: dict[str, Any], best_step: int | None = None
    ) -> None:
        """Take over what is known when the last step has been run; `best_step` is that of the checkpoint that is loaded then."""
        self.prefix_cache, self.partial = prefix_cache, False
        self.identity["ended"] = now()
        self.add_evaluations(log_history, best_step)

    def add_evaluations(self, log_history: Sequence[Mapping[str, Any]], best_step: int | None = None) -> None:
        """Take over the held-out loss of the trainer's last evaluation in the run, of the first of several eval sets.

        Where the model goes back to a checkpoint when training ends, it is that of the evaluation there.
        """
        names = [name for entry in log_history for name in entry if name.startswith("eval_") and name.endswith("loss")]
        name = "eval_loss" if "eval_loss" in names else next(iter(names), None)
        entries = [entry for entry in log_history if name in entry]
        if best_step is not None:
            entries = [entry for entry in entries if entry.get("step") == best_step]
        for entry in entries:
            found = entry[name] if name is not None else None
            if isinstance(found, float) and math.isfinite(found):
                self.quality["final_heldout_loss"] = found


def make_report(facts: RunFacts) -> SpeedupReport:
    """Return the report of what is known so far."""
    measured = facts.measurement
    ratio = measured.ratio
    bare = SpeedupReport(
        layers=facts.placement.layers,
        num_layers=facts.placement.num_layers,
        adaptable=facts.placement.every_layer,
        elsewhere=tuple(facts.elsewhere),
        step_speedup=ratio.value if ratio else None,
        interval=(ratio.low, ratio.high) if ratio else None,
        interval_coverage=ratio.coverage if ratio else None,
        pairs=ratio.pairs if ratio else 0,
        end_to_end_speedup=_end_to_end(facts),
        baseline=measured.baseline,
        placed=measured.placed,
        quality=dict(facts.quality),
        probe_seconds=facts.probe_seconds,
        overhead_seconds=facts.overhead_seconds,
        break_even_steps=_break_even(facts),
        observed_step_seconds=sum(facts.observed) / len(facts.observed) if facts.observed else None,
        planned_steps=facts.planned.steps,
        steps_run=facts.run.steps,
        micro_batches=_counted(facts)[1],
        backward_layers=facts.backward_layers,
        gradient_entry=facts.gradient_entry,
        prefix_cache=_prefix_cache(facts),
        saving=measured.saving,
        memory_method=memory_method(facts.device) if measured.placed.peak_bytes is not None else None,
        versions=installed_versions(PACKAGES),
        run=dict(facts.identity),
        placement=why_placed(facts.placement),
        scores=_scores(facts.scores),
        predicted=_predicted(facts.prediction),
        timing={name: list(seconds) for name, seconds in measured.timing.items()},
        seconds_saved=_seconds_saved(facts),
        schedule=() if facts.schedule is None else facts.schedule(),
        partial=facts.partial,
    )
    reasons = _reasons(facts)
    told = replace(bare, unavailable={name: reasons.get(name, reasons[""]) for name in bare.unexplained()})
    return replace(told, verdict=verdict_of(told).to_dict())


def _scores(scores: Mapping[str, LayerScores]) -> dict[str, list[float]]:
    """The scores that have a finite number for every layer; a report holds no others."""
    lists = {name: [float(value) for value in found.importance] for name, found in scores.items()}
    return {name: values for name, values in lists.items() if all(map(math.isfinite, values))}


def _predicted(prediction: StepPrediction | None) -> dict[str, Any]:
    """The predicted speedup, and the phases of both steps as shares of the all-layer one."""
    if prediction is None:
        return {}
    whole = prediction.all_layer.total
    both = {"baseline": prediction.all_layer, "placed": prediction.placed}
    phases = {name: {phase: cost / whole for phase, cost in asdict(units).items()} for name, units in both.items()}
    return {"step_speedup": prediction.speedup, "phases": phases}


def _reasons(facts: RunFacts) -> dict[str, str]:
    """The reason of each field that can be null; under the empty name the reason of all the others."""
    measured = facts.measurement
    rest = measured.unavailable.get("step_speedup", "Steps were not timed.")
    reasons = {
        "": rest,
        "observed_step_seconds": "Fewer than two optimizer steps have been run.",
        "backward_layers": NO_STEP,
        "phases": NO_PHASES,
        "saving.prefix_cache": facts.prefix_cache.get("obstacle") or "The run is too short to time cached steps apart.",
    }
    if measured.ratio is not None:
        reasons["end_to_end_speedup"] = NO_STEP
        reasons["break_even_steps"] = "A placed step was not faster than an all-layer step."
    if not facts.gradient_entry["moved"]:
        reasons["saving.backward"] = facts.gradient_entry["obstacle"]
    return reasons | dict(measured.unavailable)


def _spent(facts: RunFacts) -> float:
    return facts.probe_seconds + facts.overhead_seconds


def _counted(facts: RunFacts) -> tuple[int, int, float]:
    """Optimizer steps, micro-batches, and those with a cached prefix: planned ones, and of a training that ended those run."""
    if not facts.partial:
        return facts.run.steps, facts.run.micro_batches, facts.run.cached
    planned = facts.planned
    return planned.steps, planned.micro_batches, planned.micro_batches - planned.first_seen


def _step_seconds(facts: RunFacts) -> tuple[float, float] | None:
    """Seconds of a mean optimizer step's micro-batches: baseline and placed."""
    baseline, placed = facts.measurement.baseline.step_seconds, facts.measurement.placed.step_seconds
    steps, micro_batches, _ = _counted(facts)
    if not steps:
        steps, micro_batches = facts.planned.steps, facts.planned.micro_batches
    if baseline is None or placed is None or not steps:
        return None
    return baseline * micro_batches / steps, placed * micro_batches / steps


def _end_to_end(facts: RunFacts) -> float | None:
    seconds = _run_seconds(facts)
    return None if seconds is None or not seconds[0] else seconds[0] / seconds[1]


def _seconds_saved(facts: RunFacts) -> float | None:
    seconds = _run_seconds(facts)
    return None if seconds is None else seconds[0] - seconds[1]


def _run_seconds(facts: RunFacts) -> tuple[float, float] | None:
    """Seconds of the counted steps: all-layer, and placed with probe and overhead."""
    baseline, placed = facts.measurement.baseline.step_seconds, facts.measurement.placed.step_seconds
    if baseline is None or placed is None:
        return None
    _, micro_batches, from_cache = _counted(facts)
    if facts.measurement.phases:
        placed = seconds_of(facts.measurement.phases, _counted_steps(facts))
    cached = baseline / facts.measurement.cached.value if facts.measurement.cached else placed
    training = (micro_batches - from_cache) * placed + from_cache * cached
    return micro_batches * baseline, training + _spent(facts)


def _prefix_cache(facts: RunFacts) -> dict[str, Any]:
    """What the cache did, and how much faster its steps were measured to be."""
    cached = facts.measurement.cached
    measured = {"step_speedup": cached.value, "interval": [cached.low, cached.high]} if cached else {}
    return facts.prefix_cache | measured


def _counted_steps(facts: RunFacts) -> PlannedSteps:
    """The planned steps, and of a training that ended those run."""
    planned = facts.planned
    return planned if facts.partial else replace(planned, ends=planned.begins + facts.run.steps)


def _break_even(facts: RunFacts) -> int | None:
    baseline, phases = facts.measurement.baseline.step_seconds, facts.measurement.phases
    if phases and baseline is not None:
        return earned_back(phases, facts.planned, baseline, _spent(facts))
    seconds = _step_seconds(facts)
    if seconds is None or seconds[0] <= seconds[1]:
        return None
    return math.ceil(_spent(facts) / (seconds[0] - seconds[1]))
