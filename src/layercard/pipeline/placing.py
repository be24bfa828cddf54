"""`place`: choose the layers to adapt and narrow a trainer's adapters to them, before `train()`.

The order is the story: find the host, refuse what cannot work, probe, choose, narrow, verify, and attach what happens
inside `train()` (`session.py`). Where any of it fails, the trainer is left as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from peft import PeftModel

from layercard import plugins
from layercard.anatomy.adaptable import adapted_layers, layers_holding
from layercard.anatomy.adapters import adapter_sites, check_narrowable
from layercard.anatomy.layers import PEFT_PREFIX
from layercard.anatomy.narrow import narrow
from layercard.anatomy.verify import verify_placement
from layercard.cost.unit_costs import estimate_unit_costs
from layercard.errors import HostError
from layercard.pipeline.consulting import consult, run_facts
from layercard.pipeline.elsewhere import Trainables, decided, towers_to_shed
from layercard.pipeline.looking import glance, look
from layercard.pipeline.losses import refuse_nothing_to_learn
from layercard.pipeline.outlook import Outlook
from layercard.pipeline.probing import locate_layers
from layercard.pipeline.resume import is_resuming, saved_placement
from layercard.pipeline.session import PlacedRun
from layercard.pipeline.shelf import open_shelf
from layercard.placement.choose import DEFAULT_SCORE, check_depth, choose_placement, needed_score, only_some
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
    """A placement, and what was probed for it; `reused` where an earlier run's placement.json holds it."""

    placement: LayerPlacement
    statistics: LayerStatistics | None = None
    scores: Mapping[str, LayerScores] = field(default_factory=dict)
    reused: bool = False
    notes: tuple[str, ...] = ()
    """What a person should know of the Layer Cards that were consulted."""


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
    Raises `SettingsError`, `CardError`, `HostError`, `ModelError`, `DataError`, `ProbeError` or `PlacementError` before any
    training, with the trainer left as it was.
    """
    wanted = PlacementSettings.from_user(lora_layers, **settings)
    manager = manager or plugins.manager()
    host = _host(trainer, manager)
    _refuse_late(host)
    check_narrowable(host.model, allow_trained=is_resuming(host), allow_absent=chosen is not None)
    stack = locate_layers(host.model, wanted.layers_path, manager)
    refuse_nothing_to_learn(host)
    chosen = chosen or choose_layers(host, wanted, stack, manager)
    statistics, adapted = chosen.statistics, [site.path for site in adapter_sites(host.model)]
    placement = decided(chosen.placement, wanted, host.model, stack, adapted=adapted, resumed=chosen.reused)
    towers, trainables = towers_to_shed(host.model, stack, placement), Trainables(host.model, stack)
    with ExitStack() as undo:
        narrowing = narrow(host.model, stack, placement.layers, shed_towers=towers)
        undo.callback(narrowing.undo)
        verify_placement(host.model, stack, placement.layers, shed_towers=towers)
        run = PlacedRun(
            host, stack, placement, narrowing, wanted,
            probe_seconds=statistics.seconds if statistics else 0.0, statistics=statistics, scores=chosen.scores,
            trainables=trainables,
        )  # fmt: skip
        run.attach()  # before the file: a placement that ranks do not share must not be found by the next run
        undo.callback(run.detach)
        if trainer.is_world_process_zero():
            placement.save(host.output_dir / "placement.json")
        undo.pop_all()
    units = estimate_unit_costs(host.model, stack)
    outlook = Outlook.of(host.model, stack, placement, wanted, trainer.args, units)
    announce(
        placement,
        wanted,
        predicted=outlook.step,
        obstacle=outlook.obstacle,
        elsewhere=elsewhere_lines(run.elsewhere, stack.path.removeprefix(PEFT_PREFIX)),
        reused=chosen.reused,
        statistics=statistics,
        notes=chosen.notes,
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


def _refuse_late(host: Host) -> None:
    """Raise `HostError` where an optimizer already holds the adapters, or the model is wrapped."""
    trainer = host.trainer
    if trainer.optimizer is not None:
        raise HostError(
            "The trainer has an optimizer already, which holds the parameters of every layer. Call `place` between the "
            "trainer's construction and `train()`, and pass no `optimizers`."
        )
    if trainer.model_wrapped is not trainer.model:
        raise HostError("The trainer has wrapped its model already. Call `place` before `train()`.")


def choose_layers(
    host: Host,
    wanted: PlacementSettings,
    stack: LayerStack,
    manager: pluggy.PluginManager,
    *,
    target_modules: Sequence[str] | None = None,
) -> Chosen:
    """Return an earlier run's placement where there is one; else probe where the choice needs it, and choose.

    `auto` takes what matching Layer Cards lead to, and goes by depth where none matches. Every choice is among the layers that
    have adapters.

    `target_modules` (suffixes) stand in for adapters where the model has none yet. Raises as `place` does.
    """
    adaptable = only_some(_adaptable(host.model, stack, target_modules), len(stack))
    placement = saved_placement(host, wanted, len(stack))
    if placement is not None:
        return Chosen(placement.among(adaptable), reused=True)
    strategies = plugins.strategies(manager)
    needed = needed_score(wanted, strategies)
    check_depth(wanted, len(stack), adaptable)
    name = needed or (DEFAULT_SCORE if wanted.is_auto else None)
    if name is None:
        return Chosen(choose_placement(wanted, len(stack), strategies=strategies, adaptable=adaptable))
    consultation = None
    if wanted.consults_cards:
        shelf, facts = open_shelf(wanted, manager), run_facts(host)
        consultation = consult(
            shelf, wanted, host.model, stack, target_modules=target_modules, adaptable=adaptable, facts=facts
        )
    asks_card = consultation is not None and consultation.worth_probing
    thorough = needed is not None or asks_card
    decides = needed is not None or (asks_card and wanted.cards is not None)
    examples = wanted.probe_examples if thorough else min(wanted.probe_examples, EXAMPLES_FOR_A_LOOK)
    seen = (look if decides else glance)(
        host, wanted, stack, manager, name, examples=examples, target_modules=target_modules
    )
    placement = choose_placement(wanted, len(stack), strategies=strategies, scores=seen.scores, adaptable=adaptable)
    if seen.failure is not None:
        return Chosen(placement, notes=(seen.failure,))
    if consultation is None:
        return Chosen(placement, seen.statistics, seen.scores)
    decision = consultation.decide(seen.scores[DEFAULT_SCORE], placement)
    return Chosen(decision.placement, seen.statistics, seen.scores, notes=decision.notes)


def _adaptable(model: nn.Module, stack: LayerStack, target_modules: Sequence[str] | None) -> tuple[int, ...]:
    """The layers that have adapters, or will have them where there are none yet."""
    if isinstance(model, PeftModel):
        return adapted_layers(model, stack)
    return layers_holding(model, stack, target_modules)
