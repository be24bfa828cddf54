"""The story before `train()`: `choose_layers` asks what an earlier run chose, then Layer Cards, the data, and a strategy.

A run that is resumed keeps its layers. Else the strategy says which score it reads; where nobody named layers, Layer Cards are
asked whether one may decide; the probe reads as many examples as the choice needs or the run can pay for; then layers are
chosen, and what they were chosen for is written down with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from peft import PeftModel

from layercard.anatomy.adaptable import adapted_layers, layers_holding
from layercard.pipeline.before.consulting import consult, run_facts
from layercard.pipeline.before.looking import Seen, glance, look
from layercard.pipeline.before.probe_budget import probe_budget
from layercard.pipeline.before.record import record_of_run, recorded
from layercard.pipeline.before.resume import (
    check_made_for,
    resumed_placement,
)
from layercard.pipeline.before.shelf import open_shelf
from layercard.placement.choose import DEFAULT_SCORE, check_depth, choose_placement, needed_score, only_some
from layercard.registry import Extensions
from layercard.settings import PlacementSettings

if TYPE_CHECKING:
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


def choose_layers(
    host: Host,
    wanted: PlacementSettings,
    stack: LayerStack,
    extensions: Extensions,
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
    chosen = _choose(host, wanted, stack, extensions, target_modules, adaptable)
    named = wanted.placement_path
    notes = () if named is None else check_made_for(chosen.placement, named, record)
    return replace(chosen, placement=recorded(chosen.placement, record, named), notes=(*chosen.notes, *notes))


def _choose(
    host: Host,
    wanted: PlacementSettings,
    stack: LayerStack,
    extensions: Extensions,
    target_modules: Sequence[str] | None,
    adaptable: tuple[int, ...] | None,
) -> Chosen:
    strategies = extensions.strategies
    needed = needed_score(wanted, strategies)
    check_depth(wanted, len(stack), adaptable)
    name = needed or (DEFAULT_SCORE if wanted.is_auto else None)
    if name is None:
        return Chosen(choose_placement(wanted, len(stack), strategies=strategies, adaptable=adaptable))
    consultation = None
    if wanted.consults_cards:
        shelf, facts = open_shelf(wanted, extensions.card_folders), run_facts(host)
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
            host, wanted, stack, extensions, name, examples=examples, target_modules=target_modules
        )
    line = budget.asked_for_more() if decides else budget.fewer(examples) if asks_card or not examples else None
    told = () if line is None else (line,)
    placement = choose_placement(wanted, len(stack), strategies=strategies, scores=seen.scores, adaptable=adaptable)
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
