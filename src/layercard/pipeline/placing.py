"""`place`: choose the layers to adapt and narrow a trainer's adapters to them, before `train()`.

The order is the story: find the host, refuse what cannot work, probe, choose, narrow, verify, and attach what happens
inside `train()` (`session.py`). Where any of it fails, the trainer is left as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from layercard import plugins
from layercard.anatomy.adapters import check_narrowable
from layercard.anatomy.narrow import narrow
from layercard.anatomy.verify import verify_placement
from layercard.cost.unit_costs import estimate_unit_costs
from layercard.errors import HostError
from layercard.hosts.readiness import refuse_late
from layercard.pipeline.checkpoints import check_named_checkpoint
from layercard.pipeline.consulting import consult, run_facts
from layercard.pipeline.losses import refuse_nothing_to_learn
from layercard.pipeline.placed import all_adapters_back, remember, same_run
from layercard.pipeline.probing import locate_layers, score
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
from layercard.placement.choose import DEFAULT_SCORE, check_depth, choose_placement, needed_score
from layercard.probing.run import run_probe
from layercard.report.announce import announce
from layercard.settings import PlacementSettings

if TYPE_CHECKING:
    import pluggy

    from layercard.anatomy.layers import LayerStack
    from layercard.hosts.protocol import Host
    from layercard.placement.placement import LayerPlacement
    from layercard.probing.statistics import LayerStatistics, Need
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
        check_narrowable(host.model, allow_trained=is_resuming(host))
        stack = locate_layers(host.model, wanted.layers_path, manager)
        refuse_nothing_to_learn(host)
        chosen = chosen or choose_layers(host, wanted, stack, manager)
        placement, statistics = chosen.placement, chosen.statistics
        narrowing = narrow(host.model, stack, placement.layers)
        undo.callback(narrowing.undo)
        verify_placement(host.model, stack, placement.layers)
        check_named_checkpoint(checkpoint_folder(host), host.model, stack)
        run = PlacedRun(
            host, stack, placement, narrowing, wanted,
            probe_seconds=statistics.seconds if statistics else 0.0, statistics=statistics, scores=chosen.scores,
        )  # fmt: skip
        run.attach()  # before the file: a placement that ranks do not share must not be found by the next run
        undo.callback(run.detach)
        replaced = replaced_placement(host, placement)
        if trainer.is_world_process_zero():
            placement.save(host.output_dir / NAME)
        remember(host.model, narrowing)
        undo.pop_all()
    announce(
        placement,
        wanted,
        checkpointing=trainer.args.gradient_checkpointing,
        reused=chosen.reused,
        statistics=statistics,
        units=estimate_unit_costs(host.model, stack),
        notes=(*chosen.notes, *([] if replaced is None else [replaced])),
    )
    manager.hook.after_placement(placement=placement)
    return run


def _host(trainer: Any, manager: pluggy.PluginManager) -> Host:
    host: Host | None = manager.hook.locate_host(trainer=trainer)
    if host is None:
        raise HostError(
            f"{type(trainer).__module__}.{type(trainer).__name__} is no trainer that layercard knows. Supported are "
            "transformers.Trainer and, with layercard-trl, TRL's SFTTrainer and DPOTrainer. For others, write a plugin that "
            "answers the hook `locate_host`."
        )
    return host


def _plan_first(host: Host) -> str:
    name = getattr(host.model.config, "_name_or_path", None) or "MODEL"
    return (
        f"Choose the layers beforehand, `layercard plan {name} --dataset DATA -o placement.json`, and give PEFT its "
        "`layers` as `LoraConfig(layers_to_transform=[...])`."
    )


def choose_layers(
    host: Host,
    wanted: PlacementSettings,
    stack: LayerStack,
    manager: pluggy.PluginManager,
    *,
    target_modules: Sequence[str] | None = None,
) -> Chosen:
    """Return the placement of the run that is resumed where there is one; else probe where the choice needs it, and choose.

    `auto` takes what matching Layer Cards lead to, and goes by depth where none matches.

    `target_modules` (suffixes) stand in for adapters where the model has none yet. Raises as `place` does.
    """
    record = record_of_run(host, wanted, stack, target_modules)
    resumed = resumed_placement(host, wanted, record)
    if resumed is not None:
        return Chosen(resumed.placement, reused=True, notes=resumed.notes)
    chosen = _choose(host, wanted, stack, manager, target_modules)
    named = wanted.placement_path
    notes = () if named is None else check_made_for(chosen.placement, named, record)
    return replace(chosen, placement=recorded(chosen.placement, record, named), notes=(*chosen.notes, *notes))


def _choose(
    host: Host,
    wanted: PlacementSettings,
    stack: LayerStack,
    manager: pluggy.PluginManager,
    target_modules: Sequence[str] | None,
) -> Chosen:
    strategies = plugins.strategies(manager)
    needed = needed_score(wanted, strategies)
    check_depth(wanted, len(stack))
    name = needed or (DEFAULT_SCORE if wanted.is_auto else None)
    if name is None:
        return Chosen(choose_placement(wanted, len(stack), strategies=strategies))
    consultation = None
    if wanted.consults_cards:
        shelf, facts = open_shelf(wanted, manager), run_facts(host)
        consultation = consult(shelf, wanted, host.model, stack, target_modules=target_modules, facts=facts)
    thorough = needed is not None or (consultation is not None and consultation.worth_probing)
    examples = wanted.probe_examples if thorough else min(wanted.probe_examples, EXAMPLES_FOR_A_LOOK)
    statistics = _probe(host, wanted, stack, plugins.scorers(manager)[name].needs, examples, target_modules)
    scores = {name: score(statistics, name, manager)}
    placement = choose_placement(wanted, len(stack), strategies=strategies, scores=scores)
    if consultation is None:
        return Chosen(placement, statistics, scores)
    decision = consultation.decide(scores[DEFAULT_SCORE], placement)
    return Chosen(decision.placement, statistics, scores, notes=decision.notes)


def _probe(
    host: Host,
    wanted: PlacementSettings,
    stack: LayerStack,
    needs: Iterable[Need],
    examples: int,
    target_modules: Sequence[str] | None,
) -> LayerStatistics:
    batches = host.probe_batches(examples, wanted.probe_batch_size, wanted.random_seed)
    with _on_training_device(host):
        return run_probe(
            host.model,
            batches,
            stack=stack,
            needs=needs,
            loss=host.loss,
            objective=host.objective,
            target_modules=target_modules,
            rank=wanted.probe_rank,
            seed=wanted.random_seed,
            checkpointing=host.trainer.args.gradient_checkpointing,
        )


@contextmanager
def _on_training_device(host: Host) -> Iterator[None]:
    """Hold the model on the device that trains it: under FSDP and DeepSpeed it is still on the CPU before `train()`."""
    model, device = host.model, host.device
    if device.type != "cuda" or any(p.device.type != "cpu" for p in model.parameters()):
        yield
        return
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    free, _ = torch.cuda.mem_get_info(device)
    if size > 0.8 * free:
        raise HostError(
            f"The unsharded model has {size / 2**30:.0f} GiB and {device} has {free / 2**30:.0f} GiB free, so it cannot be "
            f"probed before it is sharded. {_plan_first(host)}"
        )
    model.to(device)
    try:
        yield
    finally:
        model.to("cpu")
