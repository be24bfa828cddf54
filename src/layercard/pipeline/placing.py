"""`place`: choose the layers to adapt and narrow a trainer's adapters to them, before `train()`.

The order is the story: find the host, refuse what cannot work, probe, choose, narrow, verify, and attach what happens
inside `train()` (`session.py`). Where any of it fails, the trainer is left as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel

from layercard import plugins
from layercard.anatomy.adaptable import adapted_layers, layers_holding
from layercard.anatomy.adapters import adapter_sites, check_narrowable
from layercard.anatomy.layers import PEFT_PREFIX
from layercard.anatomy.narrow import narrow
from layercard.anatomy.verify import verify_placement
from layercard.errors import HostError
from layercard.hosts.readiness import refuse_late
from layercard.pipeline.checkpoints import check_named_checkpoint
from layercard.pipeline.consulting import consult, run_facts
from layercard.pipeline.elsewhere import Trainables, decided, towers_to_shed
from layercard.pipeline.looking import Seen, glance, look
from layercard.pipeline.losses import refuse_nothing_to_learn
from layercard.pipeline.outlook import Outlook
from layercard.pipeline.placed import all_adapters_back, remember, same_run
from layercard.pipeline.probe_budget import not_earned_back, probe_budget
from layercard.pipeline.probing import locate_layers
from layercard.pipeline.record import record_of_run, recorded
from layercard.pipeline.resume import (
    NAME,
    check_made_for,
    checkpoint_folder,
    is_resuming,
    replaced_placement,
    resumed_placement,
)
from layercard.pipeline.session import PlacedRun
from layercard.pipeline.shelf import open_shelf
from layercard.pipeline.step_ratio import predicted_ratios
from layercard.placement.choose import DEFAULT_SCORE, check_depth, choose_placement, needed_score, only_some
from layercard.precision import slow_on
from layercard.report.announce import announce
from layercard.report.elsewhere import elsewhere_lines
from layercard.settings import PlacementSettings

if TYPE_CHECKING:
    import pluggy
    from torch import nn

    from layercard.anatomy.layers import LayerStack
    from layercard.hosts.protocol import Host
    from layercard.placement.placement import LayerPlacement
    from layercard.probing.statistics import LayerStatistics
    from layercard.scores.base import LayerScores

EXAMPLES_FOR_A_LOOK = 8
"""What the probe reads where `auto` goes by depth: enough to find data or weights that cannot be trained on, for the time of
one step or two."""


@dataclass(frozen=True)
class Chosen:
    """A placement, and what was probed for it; `reused` where it is that of the run that is resumed."""

    placement: LayerPlacement
    statistics: LayerStatistics | None = None
    scores: Mapping[str, LayerScores] = field(default_factory=dict)
    reused: bool = False
    notes: tuple[str, ...] = ()
    """What a person should know of the Layer Cards that were consulted, and of what a saved placement was chosen for."""


def place(
    trainer: Any,
    *,
    lora_layers: Any = "auto",
    manager: pluggy.PluginManager | None = None,
    chosen: Chosen | None = None,
    **settings: Any,
) -> PlacedRun:
    """Narrow the LoRA adapters of `trainer` to the layers worth adapting; call it between construction and `train()`.

    Parameters: `lora_layers` is `auto`, a strategy's name, a list of layer indices, the path of a placement.json, or a
    mapping of settings; any other setting of `PlacementSettings` by its name; `chosen` is what `choose_layers` returned
    where a host builds its adapter from a placement. Returns the placed run, whose `report` is
    complete when training ends. placement.json is written to the trainer's output directory.
    Called again on the same trainer with the same settings, it returns the same run. Raises `SettingsError`, `CardError`,
    `HostError`, `ModelError`, `DataError`, `ProbeError` or `PlacementError` before any training, with the trainer left as
    it was.
    """
    wanted = PlacementSettings.from_user(lora_layers, **settings)
    manager = manager or plugins.manager()
    host = _host(trainer, manager)
    run = PlacedRun.of(trainer)
    if run is not None:
        return same_run(run, wanted)
    refuse_late(trainer, wanted)
    with all_adapters_back(host.model, resuming=is_resuming(host)), ExitStack() as undo:
        check_narrowable(host.model, allow_trained=is_resuming(host), allow_absent=chosen is not None)
        stack = locate_layers(host.model, wanted.layers_path, manager)
        refuse_nothing_to_learn(host)
        chosen = chosen or choose_layers(host, wanted, stack, manager)
        statistics, adapted = chosen.statistics, [site.path for site in adapter_sites(host.model)]
        placement = decided(chosen.placement, wanted, host.model, stack, adapted=adapted, resumed=chosen.reused)
        towers, trainables = towers_to_shed(host.model, stack, placement), Trainables(host.model, stack)
        narrowing = narrow(host.model, stack, placement.layers, shed_towers=towers)
        undo.callback(narrowing.undo)
        verify_placement(host.model, stack, placement.layers, shed_towers=towers)
        check_named_checkpoint(checkpoint_folder(host), host.model, stack)
        run = PlacedRun(
            host, stack, placement, narrowing, wanted,
            probe_seconds=statistics.seconds if statistics else 0.0, statistics=statistics, scores=chosen.scores,
            trainables=trainables,
        )  # fmt: skip
        run.attach()  # before the file: a placement that ranks do not share must not be found by the next run
        undo.callback(run.detach)
        replaced = replaced_placement(host, placement)
        if trainer.is_world_process_zero():
            placement.save(host.output_dir / NAME)
        remember(host.model, narrowing)
        undo.pop_all()
    outlook = Outlook.of(host.model, stack, placement, wanted, trainer.args, run.units)
    announce(
        placement,
        wanted,
        predicted=outlook.step,
        obstacle=outlook.obstacle,
        elsewhere=elsewhere_lines(run.elsewhere, stack.path.removeprefix(PEFT_PREFIX)),
        reused=chosen.reused,
        statistics=statistics,
        notes=(*chosen.notes, *_told(run, outlook, replaced)),
    )
    manager.hook.after_placement(placement=placement)
    return run


def _told(run: PlacedRun, outlook: Outlook, replaced: str | None) -> list[str]:
    """What a person should know of a run that was placed: a file that was replaced, a slow dtype, a run that is too short."""
    trainer, statistics = run.host.trainer, run.statistics
    steps = trainer.args.max_steps * trainer.args.gradient_accumulation_steps
    lines = [replaced, slow_here(run.host)]
    if not run.placement.is_all and steps > 0:
        probed = 0.0 if statistics is None else statistics.examples / trainer.args.per_device_train_batch_size
        shares = max(run.settings.measure_budget * run.settings.measure, run.settings.guard_budget * run.settings.guard)
        lines.append(not_earned_back(outlook.step.ratio, steps, probed_steps=probed, shares=shares))
    return [line for line in lines if line is not None]


def slow_here(host: Host) -> str | None:
    """Return in a sentence that training is slow in the trainer's dtype on this CPU, which is the user's to change."""
    args, device = host.trainer.args, host.device
    weights = {parameter.dtype for parameter in host.model.parameters() if parameter.dtype.is_floating_point}
    used = [dtype for dtype, on in ((torch.bfloat16, args.bf16), (torch.float16, args.fp16)) if on] or sorted(
        weights, key=str
    )
    reason = next((found for dtype in used if (found := slow_on(device, dtype)) is not None), None)
    return (
        None if reason is None else f"{reason} The trainer's dtype is left as it is; float32 (`bf16=False`) is faster."
    )


def _host(trainer: Any, manager: pluggy.PluginManager) -> Host:
    host: Host | None = manager.hook.locate_host(trainer=trainer)
    if host is None:
        raise HostError(
            f"{type(trainer).__module__}.{type(trainer).__name__} is no trainer that layercard knows. Supported are "
            "transformers.Trainer and, with layercard-trl, TRL's SFTTrainer and DPOTrainer. For others, write a plugin that "
            "answers the hook `locate_host`."
        )
    return host


def choose_layers(
    host: Host,
    wanted: PlacementSettings,
    stack: LayerStack,
    manager: pluggy.PluginManager,
    *,
    target_modules: Sequence[str] | None = None,
    adaptable: tuple[int, ...] | None = None,
) -> Chosen:
    """Return the placement of the run that is resumed where there is one; else probe where the choice needs it, and choose.

    `auto` takes what matching Layer Cards lead to, and goes by depth where none matches. Every choice is among the layers that
    have adapters.

    `target_modules` (suffixes) stand in for adapters where the model has none yet, and `adaptable` are the layers that will
    have them (by default those that hold such modules). Raises as `place` does.
    """
    adaptable = only_some(adaptable or _adaptable(host.model, stack, target_modules), len(stack))
    record = record_of_run(host, wanted, stack, target_modules)
    resumed = resumed_placement(host, wanted, record)
    if resumed is not None:
        return Chosen(resumed.placement.among(adaptable), reused=True, notes=resumed.notes)
    chosen = _choose(host, wanted, stack, manager, target_modules, adaptable)
    named = wanted.placement_path
    notes = () if named is None else check_made_for(chosen.placement, named, record)
    return replace(chosen, placement=recorded(chosen.placement, record, named), notes=(*chosen.notes, *notes))


def _choose(
    host: Host,
    wanted: PlacementSettings,
    stack: LayerStack,
    manager: pluggy.PluginManager,
    target_modules: Sequence[str] | None,
    adaptable: tuple[int, ...] | None,
) -> Chosen:
    strategies = plugins.strategies(manager)
    needed = needed_score(wanted, strategies)
    step_ratio = predicted_ratios(host, wanted, stack, target_modules=target_modules, adaptable=adaptable)
    check_depth(wanted, len(stack), adaptable, step_ratio)
    name = needed or (DEFAULT_SCORE if wanted.is_auto else None)
    if name is None:
        return Chosen(choose_placement(wanted, len(stack), strategies=strategies, adaptable=adaptable))
    consultation = None
    if wanted.consults_cards:
        shelf, facts = open_shelf(wanted, manager), run_facts(host)
        consultation = consult(
            shelf, wanted, host.model, stack, target_modules=target_modules, adaptable=adaptable, facts=facts
        )
    budget = probe_budget(host, wanted)
    asks_card = consultation is not None and consultation.worth_probing
    decides = needed is not None or (asks_card and wanted.cards is not None)
    if consultation is not None and asks_card and not decides and not budget.allows_cards:
        consultation, asks_card = replace(consultation, why_not=budget.no_cards()), False
    examples = budget.wanted if decides else budget.affordable if asks_card else budget.look(EXAMPLES_FOR_A_LOOK)
    seen = Seen()
    if examples:
        seen = (look if decides else glance)(
            host, wanted, stack, manager, name, examples=examples, target_modules=target_modules
        )
    line = budget.asked_for_more() if decides else budget.fewer(examples) if asks_card or not examples else None
    told = () if line is None else (line,)
    placement = choose_placement(
        wanted, len(stack), strategies=strategies, scores=seen.scores, adaptable=adaptable, step_ratio=step_ratio
    )
    if seen.failure is not None:
        return Chosen(placement, notes=(seen.failure,))
    if consultation is None:
        return Chosen(placement, seen.statistics, seen.scores, notes=told)
    looked = seen.scores.get(DEFAULT_SCORE)
    decision = consultation.turned_down(placement) if looked is None else consultation.decide(looked, placement)
    return Chosen(decision.placement, seen.statistics, seen.scores, notes=(*decision.notes, *told))


def _adaptable(model: nn.Module, stack: LayerStack, target_modules: Sequence[str] | None) -> tuple[int, ...]:
    """The layers that have adapters, or will have them where there are none yet."""
    if isinstance(model, PeftModel):
        return adapted_layers(model, stack)
    return layers_holding(model, stack, target_modules)
