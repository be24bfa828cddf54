"""Whether a run tries its placement out before training, how long, and why not where it does not."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from layercard.cost.allowance import FEWEST_ROUNDS, Allowance, way_out
from layercard.cost.planned import PlannedSteps
from layercard.errors import DataError, LayercardError
from layercard.pipeline.before.losses import why_not_judged
from layercard.pipeline.during.entry import predicted
from layercard.pipeline.during.trial import Trial
from layercard.pipeline.during.variants import why_not_timed
from layercard.quality.budget import FEWEST_EXAMPLES, MOST_UPDATES, TrialCosts, least_units, plan_trial
from layercard.quality.verdict import unknown
from layercard.ranks import together
from layercard.report.files import NAME, load_report
from layercard.report.words import plural

if TYPE_CHECKING:
    from layercard.hosts.protocol import HeldOut
    from layercard.pipeline.during.entry import EntryChoice
    from layercard.pipeline.during.rising import Rising
    from layercard.pipeline.placed_run import PlacedRun
    from layercard.placement.placement import LayerPlacement

RETRIES = 2
"""How many widened placements `widen` may try."""
EXTRA_VARIANTS = 0.4
"""Share of timing's budget that goes to each variant beside the trial's own two."""
FOR_PHASES = 0.5
"""Share of the budget that is kept for timing the phases of a schedule."""
PLANNED_FOR = 0.9
"""Share of the budget that is planned for; first steps are slower, and batches, optimizers and copies take the rest."""
BUILT_ON_FEWER = "The adapter was built on the chosen layers alone, so there is no all-layer LoRA to compare with."


def all_layers(placement: LayerPlacement) -> str:
    """Return why nothing is lost where the placement is all-layer LoRA."""
    return f"{every_layer(placement)} is adapted, which is all-layer LoRA itself."


def every_layer(placement: LayerPlacement) -> str:
    """Return `Every layer`, as the layers that have adapters are called."""
    return "Every layer" if placement.adaptable is None else "Every layer that has adapters"


def choose_trial(
    run: PlacedRun, state: Any, entries: EntryChoice, *, prefix_cached: bool, rising: Rising | None = None
) -> tuple[Trial | None, dict[str, Any]]:
    """Return the trial of a run that begins to train, or None and what the report says of quality instead.

    That of a schedule (`rising`) has its rises at the same shares; the learning rate is the run's own alone.
    """
    steps = planned_steps(run.host.trainer, state).micro_batches
    settled = _settled(run, state, rises=rising is not None and rising.rests)
    if settled is not None:
        return None, settled
    costs = trial_costs(run, entries)
    budget = PLANNED_FOR * run.settings.guard_budget * steps
    if rising is None:
        beside = _timing_beside(run, entries, steps, costs, extras=prefix_cached)
    else:
        beside = _timing_of_phases(run, costs, len(rising.phases), steps)
    retries = RETRIES if run.settings.on_quality_loss == "widen" else 0
    plan = plan_trial(budget - beside, costs, retries=retries, second_rate_wanted=rising is None)
    if plan is None:
        return None, unknown(_too_short(run, steps, _least(run, costs, beside, rising)))
    in_small = None if rising is None else rising.in_small(plan.updates)
    if rising is not None and in_small is None:
        return None, unknown(_too_few(rising, plan.updates))
    with together():
        heldout = run.host.heldout_batches(plan.examples)
    if len(heldout.batches) < FEWEST_EXAMPLES:
        return None, unknown(_too_few_held_out(heldout))
    reason = why_not_judged(run.host)
    if reason is not None:
        return None, unknown(reason)
    try:
        updates = run.host.update_batches(plan.updates, heldout.held_back)
    except DataError as error:  # a training set that can be read only once; training itself can
        return None, unknown(str(error))
    return Trial(run.host, plan, heldout, updates, run.control, in_small), {}


def _too_few_held_out(heldout: HeldOut) -> str:
    many = len(heldout.batches)
    found = f"There {'is' if many == 1 else 'are'} {plural(many, 'held-out example')} ({heldout.source})"
    ways = "its rows with labels count" if heldout.source == "eval_dataset" else "give the trainer an `eval_dataset`"
    return f"{found} and {FEWEST_EXAMPLES} are needed; {ways}."


def planned_steps(trainer: Any, state: Any) -> PlannedSteps:
    """Return the steps that a training which begins now is to take, by the length of its dataloader."""
    from transformers.trainer_utils import has_length

    loader = trainer.callback_handler.train_dataloader
    epoch = len(loader) * trainer.get_sp_size() if has_length(loader) else None
    return PlannedSteps(state.global_step, state.max_steps, trainer.args.gradient_accumulation_steps, epoch)


def trial_costs(run: PlacedRun, entries: EntryChoice) -> TrialCosts:
    """Return what the parts of a trial are predicted to cost in this run."""
    trainer, units = run.host.trainer, run.units
    prediction = predicted(run, entries)
    depth = run.placement.num_layers
    forward = depth * (units.layer_forward + units.adapter_forward) + units.head_forward
    return TrialCosts(
        steps_each=trainer.args.gradient_accumulation_steps,
        placed=prediction.ratio,
        forward=forward / prediction.all_layer.total,
        batch_size=trainer._train_batch_size * trainer.args.world_size,
    )


def _settled(run: PlacedRun, state: Any, *, rises: bool) -> dict[str, Any] | None:
    """Return the quality where no trial can run, or is needed, or has run before; None where one may."""
    if not run.settings.guard:
        return unknown("`guard` is off.")
    if run.placement.is_all and not rises:
        return unknown(all_layers(run.placement)) | {"kind": "predicted", "share_kept": 1.0}
    if run.begun_before is not None:
        return dict(run.begun_before.quality)
    if state.global_step > 0:
        return _of_earlier_run(run)
    if run.built_on_fewer:
        return unknown(BUILT_ON_FEWER)
    reason = why_not_timed(run.host.trainer)
    return None if reason is None else unknown(reason.replace("timed", "tried"))


def earlier_forgetting(run: PlacedRun) -> Any:
    """Return what the report of this run's beginning says of control rows; None where it says nothing."""
    if run.begun_before is not None:
        return run.begun_before.quality.get("forgetting")
    try:
        return load_report(run.host.output_dir / NAME).quality.get("forgetting")
    except LayercardError:
        return None


def schedule_not_given(run: PlacedRun) -> str | None:
    """Return in a sentence that a resumed run lacks the schedule that it began with, None where it has one or had none."""
    if run.settings.schedule is not None or run.begun_before is not None:
        return None
    try:
        began_with = load_report(run.host.output_dir / NAME).schedule
    except LayercardError:
        return None
    if not began_with:
        return None
    return (
        "This run was resumed without `schedule`, and the report.json of its beginning has one. All of its layers learn from "
        "here on, those that had stopped too; to go on as it began, give `schedule` again."
    )


def _of_earlier_run(run: PlacedRun) -> dict[str, Any]:
    path = run.host.output_dir / NAME
    try:
        found = dict(load_report(path).quality)
    except LayercardError:
        return unknown("The run was resumed, and the report.json of its beginning is not there to be read.")
    found["reaction"] = "none" if found.get("reaction") == "stopped" else found.get("reaction")
    return found | {"reason": found.get("reason") or "Found when the run began, before it was resumed."}


def _timing_beside(run: PlacedRun, entries: EntryChoice, steps: int, costs: TrialCosts, *, extras: bool) -> float:
    """Return what timing costs beside the trial's own steps, in all-layer steps: warm-up and further variants."""
    settings = run.settings
    if not settings.measure:
        return 0.0
    allowance = Allowance(steps, min(settings.measure_budget, settings.guard_budget), predicted(run, entries).speedup)
    variants = allowance.holds(split=True) * (1 + extras)
    return (1 + costs.placed) + variants * EXTRA_VARIANTS * allowance.budget * steps


def _timing_of_phases(run: PlacedRun, costs: TrialCosts, phases: int, steps: int) -> float:
    """Return what is left to the timing of a schedule's phases, in all-layer steps; its steps are none of the trial's.

    `FOR_PHASES` of the budget where timing may take that much, so that no trial keeps a speed from being measured; at least
    warm-up, the fewest rounds and two more, for steps whose peak is looked at without checkpointing and because first steps
    are slower.
    """
    settings = run.settings
    if not settings.measure:
        return 0.0
    least = (3 + FEWEST_ROUNDS) * (1 + phases * costs.placed)
    return max(least, min(settings.measure_budget, FOR_PHASES * settings.guard_budget) * steps)


def _least(run: PlacedRun, costs: TrialCosts, beside: float, rising: Rising | None) -> float:
    """Return what the smallest trial takes of the budget, the timing beside it included, in all-layer steps."""
    trial = least_units(costs)
    if rising is None:
        return (trial + beside) / PLANNED_FOR
    timing = _timing_of_phases(run, costs, len(rising.phases), 0)
    return max((trial + timing) / PLANNED_FOR, trial / (PLANNED_FOR - FOR_PHASES))


def _too_few(rising: Rising, updates: int) -> str:
    """Why a trial of so many optimizer steps does not hold the schedule."""
    enough = next((n for n in range(updates, MOST_UPDATES + 1) if rising.in_small(n) is not None), None)
    if enough is None:
        return f"A phase of the schedule is too short to have a step in a trial, which takes {MOST_UPDATES} at most."
    return (
        f"The trial that `guard_budget` pays for has {updates} steps, too few for each phase of the schedule to have one; "
        f"{enough} are enough."
    )


def _too_short(run: PlacedRun, steps: int, least: float) -> str:
    budget = run.settings.guard_budget
    each = run.host.trainer.args.gradient_accumulation_steps
    enough = f"; a run of about {math.ceil(least / budget / each)} optimizer steps can" if budget else ""
    return (
        f"The run is too short to try its placement out: {budget:.1%} of its {steps} planned micro-batch steps cannot pay "
        f"for a trial, which takes about {least:.1f}{enough}. {way_out('guard_budget', least / max(1, steps), 'try it')}"
    )
