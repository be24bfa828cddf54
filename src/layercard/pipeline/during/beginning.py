"""What happens when training begins: the gradient entry, the timing, the trial, and what follows from its verdict.

`begin` may change the placement: to all layers, or to more of them. Then optimizer and scheduler, which the trainer has
made by then, are made anew, and placement.json is written again.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from layercard.cost.allowance import Allowance
from layercard.cost.speedup import StepCost
from layercard.cost.timing import Variant
from layercard.cost.untouched import trainable_parameters
from layercard.pipeline.during.cache import PrefixChoice
from layercard.pipeline.during.entry import EntryChoice, predicted
from layercard.pipeline.during.other_layers import adopt, settle
from layercard.pipeline.during.phase_timing import measure_phases
from layercard.pipeline.during.rising import Rising, rising_of
from layercard.pipeline.during.timing import OUT_OF_MEMORY, Measurement, measure
from layercard.pipeline.during.trial_choice import (
    BUILT_ON_FEWER,
    all_layers,
    choose_trial,
    earlier_forgetting,
    every_layer,
    planned_steps,
    schedule_not_given,
)
from layercard.pipeline.during.variants import PLACED, entering, out_of_memory, why_not_timed
from layercard.quality.verdict import completed, meaning, unknown
from layercard.quality.widening import wider

if TYPE_CHECKING:
    from collections.abc import Callable

    from layercard.pipeline.during.trial import Trial
    from layercard.pipeline.placed_run import PlacedRun
    from layercard.quality.verdict import Verdict

log = logging.getLogger("layercard")

UNTRIED = "The placement was widened, and the guard's budget holds no second trial."
CHANGED = "The guard changed the placement when training began, after its steps were timed, and the budget is used up."
NO_TRIAL = dict.fromkeys(("share_kept", "interval", "share_in_trial", "interval_in_trial", "learning_rate_hint"))
"""What a trial of another placement says nothing about."""
REACTIONS = {"warn": "warned", "stop": "stopped", "all_layers": "all_layers", "widen": "widened"}


@dataclass
class Beginning:
    """What a run trains with, and what was found out about it before its first step."""

    entries: EntryChoice
    prefix: PrefixChoice
    measurement: Measurement
    quality: dict[str, Any]
    rising: Rising | None = None
    """What its schedule does, where it has one."""


def begin(run: PlacedRun, state: Any, undo: ExitStack) -> Beginning:
    """Measure `run`, try its placement out, and act on what was found; the prefix cache in use is entered on `undo`."""
    steps = planned_steps(run.host.trainer, state).micro_batches
    if run.control is not None:
        fresh = run.begun_before is None and state.global_step == 0
        run.control.begin(None if fresh else earlier_forgetting(run), fresh=fresh)
    lacking = schedule_not_given(run) if state.global_step > 0 else None
    if lacking is not None and run.host.trainer.is_world_process_zero():
        log.warning("%s", lacking)
    with ExitStack() as held:
        rising = rising_of(run, state.global_step, state.max_steps)
        if rising is not None:
            return _scheduled(run, state, undo, rising, steps)
        entries, prefix = _choices(run, held)
        trial, quality = choose_trial(run, state, entries, prefix_cached=prefix.cache is not None)
        measured = partial(measure, run.host, run.narrowing, entries, prefix, trial=trial)
        measurement = _measurement(run, entries, steps, measured, tried=trial is not None)
        verdict = None
        if trial is not None:
            verdict, quality = _tried(run, trial, entries, measurement)
        lost = verdict is not None and verdict.share.below(run.settings.quality_threshold)
        reaction = REACTIONS[run.settings.on_quality_loss] if lost else quality.get("reaction") or "none"
        if trial is None or verdict is None or not lost or reaction in ("warned", "stopped"):
            undo.push(held.pop_all())
            return Beginning(entries, prefix, measurement, _told(run, state, trial, quality, reaction))
    return _changed(run, state, undo, trial, verdict)


def _scheduled(run: PlacedRun, state: Any, undo: ExitStack, rising: Rising, steps: int) -> Beginning:
    """Try a schedule in small, measure its phases and enter the first; with rises only a loss that diverged is warned of."""
    entries = rising.current.entries
    trial, quality = choose_trial(run, state, entries, prefix_cached=False, rising=rising)
    reaction, left = quality.get("reaction") or "none", run.settings.measure_budget
    if trial is not None:
        verdict, quality = _tried(run, trial, entries)
        lost = verdict is not None and verdict.share.below(run.settings.quality_threshold)
        reaction = "warned" if lost else "none"
        left = min(left, max(run.settings.guard_budget, left) - trial.plan.units / steps)
    measured = partial(measure_phases, run.host, run.narrowing, rising)
    measurement = _measurement(run, entries, steps, measured, budget=max(0.0, left), rests=rising.rests)
    prefix = rising.enter(undo)
    return Beginning(entries, prefix, measurement, _told(run, state, trial, quality, reaction), rising)


def _choices(run: PlacedRun, undo: ExitStack) -> tuple[EntryChoice, PrefixChoice]:
    host = run.host
    entries = EntryChoice(host.model, run.stack, run.placement, run.settings, host.trainer.args)
    prefix = PrefixChoice(host, run.stack, run.placement, run.settings, entry_obstacle=entries.obstacle)
    undo.enter_context(prefix)
    return entries, prefix


def _placed(entries: EntryChoice) -> Variant:
    """The placed model as it trains; the trial's arms bring their own steps."""
    return Variant(PLACED, entering(entries.entry), lambda number: None)


def _tried(
    run: PlacedRun, trial: Trial, entries: EntryChoice, measurement: Measurement | None = None
) -> tuple[Verdict | None, dict[str, Any]]:
    """Return the trial's verdict and what it says of quality; no verdict where all-layer LoRA does not fit."""
    if measurement is not None and measurement.unavailable.get("baseline.peak_bytes") == OUT_OF_MEMORY:
        return None, unknown(OUT_OF_MEMORY)
    try:
        verdict = trial.verdict(run.narrowing.all_layers, _placed(entries))
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return None, unknown("The trial ran out of memory.")
    return verdict, verdict.to_dict() | {"tried": [_try(run, verdict)]}


def _try(run: PlacedRun, verdict: Verdict | None) -> dict[str, Any]:
    return {"layers": list(run.layers), "share_kept": None if verdict is None else verdict.share.value}


def _told(run: PlacedRun, state: Any, trial: Trial | None, quality: dict[str, Any], reaction: str) -> dict[str, Any]:
    """Return what the report says under `quality`, every key of it."""
    facts: dict[str, Any] = {"threshold": run.settings.quality_threshold, "evidence": run.placement.evidence}
    if trial is not None:
        facts |= {"planned_steps": state.max_steps, "seconds": trial.seconds, "judged_by": run.host.judged_by}
        facts |= {"meaning": meaning(trial.plan.updates, state.max_steps, rises=bool(quality.get("rises")))}
    control = None if run.control is None else run.control.to_dict()
    return completed(facts | quality | {"reaction": reaction, "forgetting": control})


def _changed(run: PlacedRun, state: Any, undo: ExitStack, trial: Trial, verdict: Verdict) -> Beginning:
    """Adapt other layers, as `on_quality_loss` says, and begin again with them."""
    share = verdict.share.value
    kept = "none" if share is None else f"{share:.0%}"
    why = f"the guard's trial of layers {list(run.layers)} promised to keep {kept} of the gain"
    tries = [_try(run, verdict)]
    found: Verdict | None = None
    if run.settings.on_quality_loss == "widen":
        found = _widen(run, trial, tries, why)
    else:
        adopt(run, run.placement.every_layer, f"every layer: {why}", other_stacks="keep")
    settle(run, state.max_steps)
    quality = (found or verdict).to_dict() | {"tried": tries}
    if run.placement.is_all:
        quality |= NO_TRIAL | {"kind": "predicted", "share_kept": 1.0, "reason": all_layers(run.placement)}
    elif found is None:
        quality |= NO_TRIAL | {"kind": "unknown", "reason": UNTRIED}
    if run.control is not None and (found is None or run.placement.is_all):
        run.control.drop_placed(every_layer=run.placement.is_all)
    entries, prefix = _choices(run, undo)
    steps = planned_steps(run.host.trainer, state).micro_batches
    left = max(0.0, run.settings.guard_budget - trial.plan.units / steps)
    measured = partial(measure, run.host, run.narrowing, entries, prefix)
    budget = min(left, run.settings.measure_budget)
    measurement = _measurement(run, entries, steps, measured, budget=budget, used_up=CHANGED)
    reaction = REACTIONS[run.settings.on_quality_loss]
    return Beginning(entries, prefix, measurement, _told(run, state, trial, quality, reaction))


def _widen(run: PlacedRun, trial: Trial, tries: list[dict[str, Any]], why: str) -> Verdict | None:
    """Add layers until enough is kept, the budget is used up, or every layer is adapted; None where that was not tried."""
    verdict = None
    for _ in range(max(1, trial.plan.retries)):
        scores = None if run.scores is None else run.scores.get(run.placement.score or "")
        ranked = None if scores is None else scores.ranked()
        placement, min_entry = run.placement, run.settings.min_entry
        layers = wider(
            run.layers, placement.num_layers, ranked=ranked, min_entry=min_entry, adaptable=placement.adaptable
        )
        adopt(run, layers, f"widened: {why}", other_stacks="keep" if layers == run.layers else None)
        if run.placement.is_all or trial.plan.retries == 0:
            return None
        trial.forget_placed()
        entries = EntryChoice(run.host.model, run.stack, run.placement, run.settings, run.host.trainer.args)
        verdict = trial.verdict(run.narrowing.all_layers, _placed(entries))
        tries.append(_try(run, verdict))
        if not verdict.share.below(run.settings.quality_threshold):
            break
    return verdict


def _measurement(
    run: PlacedRun,
    entries: EntryChoice,
    steps: int,
    measured: Callable[[Allowance], Measurement],
    *,
    tried: bool = False,
    budget: float | None = None,
    used_up: str | None = None,
    rests: bool = False,
) -> Measurement:
    """Measure, or say why not; trainable parameters are counted in any case.

    Parameters: `measured` times within an allowance, `tried` says that a trial's own steps are timed, `budget` is what an
    earlier trial has left of it, `used_up` the reason where that is too little, and `rests` says that layers stop learning.
    """
    settings = run.settings
    speedup = predicted(run, entries).speedup
    allowance = Allowance(steps, settings.measure_budget if budget is None else budget, speedup)
    if run.built_on_fewer:
        return _without_baseline(run)
    if not settings.measure:
        reason: str | None = "`measure` is off."
    elif not rests and run.placement.is_all and (entries.entry is None or run.placement.entry == 0):
        reason = f"{every_layer(run.placement)} is adapted, so placed and all-layer steps are the same."
    else:
        reason = why_not_timed(run.host.trainer) or (None if tried else allowance.too_short())
        reason = used_up if reason is not None and used_up is not None else reason
    if reason is None:
        return measured(allowance)
    placed = StepCost(trainable_parameters=trainable_parameters(run.host.model))
    with run.narrowing.all_layers():
        baseline = StepCost(trainable_parameters=trainable_parameters(run.host.model))
    return Measurement(baseline, placed, unavailable={"step_speedup": reason})


def _without_baseline(run: PlacedRun) -> Measurement:
    """Where the adapter was built on fewer layers, all-layer LoRA is not there to be run or counted."""
    placed = StepCost(trainable_parameters=trainable_parameters(run.host.model))
    unavailable = dict.fromkeys(("step_speedup", "baseline.trainable_parameters"), BUILT_ON_FEWER)
    return Measurement(placed=placed, unavailable=unavailable)
