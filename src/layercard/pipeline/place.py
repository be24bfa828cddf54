"""`place`: choose the layers to adapt and narrow a trainer's adapters to them, before `train()`.

The order is the story: find the host, refuse what cannot work, probe, choose, narrow, verify, and attach what happens
inside `train()` (`during/callback.py`). Where any of it fails, the trainer is left as it was.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch

from layercard import plugins
from layercard.anatomy.adapters import adapter_sites, check_narrowable
from layercard.anatomy.layers import PEFT_PREFIX
from layercard.anatomy.narrow import narrow
from layercard.anatomy.verify import verify_placement
from layercard.errors import HostError
from layercard.hosts.readiness import refuse_late
from layercard.pipeline.before.choosing import Chosen, choose_layers
from layercard.pipeline.before.earlier import all_adapters_back, remember, same_run
from layercard.pipeline.before.looking import RunToPlace, locate_layers
from layercard.pipeline.before.losses import refuse_nothing_to_learn
from layercard.pipeline.before.other_parts import Trainables, decided, towers_to_shed
from layercard.pipeline.before.outlook import Outlook, put_off
from layercard.pipeline.before.probe_budget import not_earned_back, planned_updates
from layercard.pipeline.before.resume import (
    NAME,
    checkpoint_folder,
    is_resuming,
    replaced_placement,
)
from layercard.pipeline.before.whole import check_whole
from layercard.pipeline.during.callback import attach, detach, run_of
from layercard.pipeline.during.checkpoints import check_named_checkpoint
from layercard.pipeline.during.control import control_of
from layercard.pipeline.placed_run import PlacedRun
from layercard.placement.phases import check_rises
from layercard.precision import slow_on
from layercard.ranks import together
from layercard.registry import Extensions
from layercard.report.announce import announce
from layercard.report.elsewhere import elsewhere_lines
from layercard.settings import PlacementSettings
from layercard.settings.schedule import parse_schedule

if TYPE_CHECKING:
    import pluggy

    from layercard.hosts.protocol import Host


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
    it was. Every rank of a run has to call it; where it fails on one, it raises on all of them, `RankError` where what the
    first one raised is no error of layercard's own.
    """
    with together():
        return _placed(trainer, lora_layers, manager, chosen, settings)


def _placed(
    trainer: Any,
    lora_layers: Any,
    manager: pluggy.PluginManager | None,
    chosen: Chosen | None,
    settings: dict[str, Any],
) -> PlacedRun:
    wanted = PlacementSettings.from_user(lora_layers, **settings)
    extensions = plugins.extensions(manager)
    host = _host(trainer, extensions)
    run = run_of(trainer)
    if run is not None:
        return same_run(run, wanted)
    refuse_late(trainer, wanted)
    check_whole(checkpoint_folder(host))
    control = control_of(host, wanted.control)
    with all_adapters_back(host.model, resuming=is_resuming(host)), ExitStack() as undo:
        check_narrowable(host.model, allow_trained=is_resuming(host), allow_absent=chosen is not None)
        stack = locate_layers(host.model, wanted.layers_path, extensions)
        refuse_nothing_to_learn(host)
        chosen = chosen or choose_layers(RunToPlace(host, wanted, stack, extensions))
        statistics, adapted = chosen.statistics, [site.path for site in adapter_sites(host.model)]
        check_rises(chosen.placement, parse_schedule(wanted.schedule))
        placement = decided(chosen.placement, wanted, host.model, stack, adapted=adapted, resumed=chosen.reused)
        towers, trainables = towers_to_shed(host.model, stack, placement), Trainables(host.model, stack)
        narrowing = narrow(host.model, stack, placement.layers, shed_towers=towers)
        undo.callback(narrowing.undo)
        verify_placement(host.model, stack, placement.layers, shed_towers=towers)
        check_named_checkpoint(checkpoint_folder(host), host.model, stack)
        run = PlacedRun(
            host, stack, placement, narrowing, wanted,
            probe_seconds=statistics.seconds if statistics else 0.0, statistics=statistics, scores=chosen.scores,
            trainables=trainables, control=control,
        )  # fmt: skip
        attach(run)  # before the file: a placement that ranks do not share must not be found by the next run
        undo.callback(detach, run)
        replaced = replaced_placement(host, placement)
        if trainer.is_world_process_zero():
            placement.save(host.output_dir / NAME)
        remember(host.model, narrowing)
        undo.pop_all()
    steps = planned_updates(trainer)
    outlook = Outlook.of(host.model, stack, placement, wanted, trainer.args, run.units, steps)
    notes = (*chosen.notes, *_told(run, outlook, replaced, put_off(placement, wanted, trainer.args, steps)))
    if trainer.is_world_process_zero():
        announce(
            placement,
            wanted,
            predicted=outlook.step,
            obstacle=outlook.obstacle,
            elsewhere=elsewhere_lines(run.elsewhere, stack.path.removeprefix(PEFT_PREFIX)),
            reused=chosen.reused,
            statistics=statistics,
            notes=notes,
        )
    extensions.after_placement(placement)
    return run


def _told(run: PlacedRun, outlook: Outlook, replaced: str | None, later: str | None) -> list[str]:
    """What a person should know of a run that was placed: a schedule that is put off (`later`), a file that was `replaced`, a
    slow dtype, a run that is too short."""
    trainer, statistics = run.host.trainer, run.statistics
    steps = trainer.args.max_steps * trainer.args.gradient_accumulation_steps
    lines = [later, replaced, slow_here(run.host)]
    if (not run.placement.is_all or run.settings.schedule is not None) and steps > 0:
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


def _host(trainer: Any, extensions: Extensions) -> Host:
    host = extensions.locate_host(trainer)
    if host is None:
        raise HostError(
            f"{type(trainer).__module__}.{type(trainer).__name__} is no trainer that layercard knows. Supported are "
            "transformers.Trainer and, with layercard-trl, TRL's SFTTrainer and DPOTrainer. For others, write a plugin that "
            "answers the hook `locate_host`."
        )
    return host
