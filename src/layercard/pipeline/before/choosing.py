"""The story before `train()`: `choose_layers` asks what an earlier run chose, then Layer Cards, the data, and a strategy.

A run that is resumed keeps its layers. Else the strategy says which score it reads; where nobody named layers, Layer Cards are
asked whether one may decide; the probe reads as many examples as the choice needs or the run can pay for; then layers are
chosen, and what they were chosen for is written down with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from peft import PeftModel

from layercard.anatomy.adaptable import adapted_layers, layers_holding
from layercard.pipeline.before.consulting import Consultation, consult, run_facts
from layercard.pipeline.before.looking import RunToPlace, Seen, glance, look
from layercard.pipeline.before.peak_ahead import predicted_peaks
from layercard.pipeline.before.probe_budget import probe_budget
from layercard.pipeline.before.record import record_of_run, recorded
from layercard.pipeline.before.resume import (
    check_made_for,
    resumed_placement,
)
from layercard.pipeline.before.shelf import open_shelf
from layercard.pipeline.before.step_ratio import predicted_ratios
from layercard.placement.choose import DEFAULT_SCORE, check_depth, choose_placement, needed_score, only_some

if TYPE_CHECKING:
    from layercard.placement.placement import LayerPlacement
    from layercard.placement.strategies import Predictions
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


def choose_layers(run: RunToPlace) -> Chosen:
    """Return the placement of the run that is resumed where there is one; else probe where the choice needs it, and choose.

    `auto` takes what matching Layer Cards lead to, and goes by depth where none matches. Every choice is among the layers that
    have adapters: `run.adaptable`, by default those that hold `run.target_modules`. Raises as `place` does.
    """
    run = replace(run, adaptable=only_some(run.adaptable or _adaptable(run), len(run.stack)))
    record = record_of_run(run.host, run.settings, run.stack, run.target_modules)
    resumed = resumed_placement(run.host, run.settings, record)
    if resumed is not None:
        return Chosen(resumed.placement.among(run.adaptable), reused=True, notes=resumed.notes)
    chosen = _choose(run)
    named = run.settings.placement_path
    notes = () if named is None else check_made_for(chosen.placement, named, record)
    return replace(chosen, placement=recorded(chosen.placement, record, named), notes=(*chosen.notes, *notes))


def _choose(run: RunToPlace) -> Chosen:
    wanted, strategies = run.settings, run.extensions.strategies
    needed = needed_score(wanted, strategies)
    predictions: Predictions = {"step_ratio": predicted_ratios(run), "peak": predicted_peaks(run)}
    check_depth(wanted, len(run.stack), run.adaptable, **predictions)
    name = needed or (DEFAULT_SCORE if wanted.is_auto else None)
    if name is None:
        return Chosen(_by_strategy(run, {}, predictions))
    consultation = _consultation(run) if wanted.consults_cards else None
    budget = probe_budget(run.host, wanted)
    asks_card = consultation is not None and consultation.worth_probing
    decides = needed is not None or (asks_card and wanted.cards is not None)
    if consultation is not None and asks_card and not decides and not budget.allows_cards:
        consultation, asks_card = replace(consultation, why_not=budget.no_cards()), False
    examples = budget.wanted if decides else budget.affordable if asks_card else budget.look(EXAMPLES_FOR_A_LOOK)
    seen = Seen()
    if examples:
        seen = (look if decides else glance)(run, name, examples=examples)
    line = budget.asked_for_more() if decides else budget.fewer(examples) if asks_card or not examples else None
    told = () if line is None else (line,)
    placement = _by_strategy(run, seen.scores, predictions)
    if seen.failure is not None:
        return Chosen(placement, notes=(seen.failure,))
    if consultation is None:
        return Chosen(placement, seen.statistics, seen.scores, notes=told)
    looked = seen.scores.get(DEFAULT_SCORE)
    decision = consultation.turned_down(placement) if looked is None else consultation.decide(looked, placement)
    return Chosen(decision.placement, seen.statistics, seen.scores, notes=(*decision.notes, *told))


def _consultation(run: RunToPlace) -> Consultation:
    shelf = open_shelf(run.settings, run.extensions.card_folders)
    return consult(
        shelf,
        run.settings,
        run.host.model,
        run.stack,
        target_modules=run.target_modules,
        adaptable=run.adaptable,
        facts=run_facts(run.host),
    )


def _by_strategy(run: RunToPlace, scores: Mapping[str, LayerScores], predictions: Predictions) -> LayerPlacement:
    return choose_placement(
        run.settings,
        len(run.stack),
        strategies=run.extensions.strategies,
        scores=scores,
        adaptable=run.adaptable,
        **predictions,
    )


def _adaptable(run: RunToPlace) -> tuple[int, ...]:
    """The layers that have adapters, or will have them where there are none yet."""
    model = run.host.model
    if isinstance(model, PeftModel):
        return adapted_layers(model, run.stack)
    return layers_holding(model, run.stack, run.target_modules)
