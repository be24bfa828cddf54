"""Makes a plan for a command: the placement, the step ratio expected of it, and how it differs from a saved one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from layercard import plugins
from layercard.anatomy.adaptable import layers_holding, names_held, targets_below, unmatched
from layercard.anatomy.layers import LayerStack, describe
from layercard.anatomy.other_stacks import other_stacks
from layercard.cli.choosing import Asked, choose
from layercard.cli.costs import plan_costs
from layercard.cli.coupling_lines import coupled, coupling_line
from layercard.cli.examine import Examined
from layercard.cli.front_table import FrontRow, front_rows, show_front
from layercard.cli.front_table import document as front_document
from layercard.cli.loading import settled, skeleton
from layercard.cli.memory import MemoryPlan, peaks_ahead, plan_memory
from layercard.cli.memory_options import MemoryAsked
from layercard.cli.next_steps import say_sentences
from layercard.cli.options import DataSource, ModelSource
from layercard.cli.output import Output
from layercard.cli.recording import record_of_command
from layercard.cli.strategy_table import StepConditions, StrategyCost, quality_word, show_strategies, strategy_costs
from layercard.cli.strategy_table import document as strategies_document
from layercard.cli.tables import show_layers
from layercard.cost.fit import Traced
from layercard.cost.predict import StepPrediction, UnitCosts
from layercard.cost.tracer import tracer
from layercard.errors import one_of
from layercard.pipeline.before.looking import locate_layers
from layercard.pipeline.before.other_parts import decided, towers_to_shed
from layercard.pipeline.before.record import recorded
from layercard.pipeline.before.resume import check_made_for
from layercard.pipeline.before.step_ratio import all_layers
from layercard.placement.choose import check_depth, needed_score, only_some
from layercard.placement.phases import check_rises
from layercard.placement.placement import LayerPlacement
from layercard.placement.rates import learning_rate_hint
from layercard.placement.strategies import Predictions
from layercard.records import local_file
from layercard.report.announce import LESS, schedule_lines
from layercard.report.words import as_fast
from layercard.scores.coupling import Coupling
from layercard.settings import PlacementSettings
from layercard.settings.schedule import parse_schedule
from layercard.sizes import parse_size

UNKNOWN_QUALITY = "no Layer Card says what this placement achieves; quality is unproven"
UNKNOWN_MEMORY = "no Layer Card says; `memory` has what is predicted"


@dataclass(frozen=True)
class Plan:
    """A placement and what is expected of it; `examined` is None where no score was needed."""

    placement: LayerPlacement
    expected: StepPrediction
    checkpointing: bool
    examined: Examined | None
    strategies: list[StrategyCost]
    costs: str
    """How the costs behind the predictions were found."""
    memory: MemoryPlan
    notes: tuple[str, ...] = ()
    """What a person should know of the Layer Cards that were consulted, and of modules outside the layers."""
    front: tuple[FrontRow, ...] = ()
    """What more time buys by the score that chose the layers; nothing where none did."""
    coupling: Coupling | None = None
    """How much they stand in for each other, where the score knows."""
    scheduled: bool = False
    """Whether lower layers stop learning on the way."""

    def document(self) -> dict[str, Any]:
        """Return what `layercard plan --json` prints."""
        examined = self.examined.document() if self.examined else None
        return {
            "placement": self.placement.to_dict(),
            "expected": {
                "step_speedup": self.expected.speedup,
                "step_ratio": self.expected.ratio,
                "gradient_checkpointing": self.checkpointing,
                **_from_cards(self.placement),
            },
            "strategies": [
                row | self.memory.of_strategy(row["strategy"]) for row in strategies_document(self.strategies)
            ],
            "memory": self.memory.document(),
            "front": front_document(self.front),
            "coupling": None if self.coupling is None else self.coupling.to_dict(),
            "costs": self.costs,
            "scores": examined["scores"] if examined else {},
            "probe": examined["probe"] if examined else None,
        }

    def show(self, output: Output) -> None:
        """Print it for people."""
        chosen = self.placement
        if self.examined is not None:
            show_layers(output.console, self.examined.scores, chosen.layers)
        output.say(f"Adapt {describe(chosen.layers, chosen.num_layers)}.")
        say_sentences(output, [chosen.reason, *self.notes])
        if not chosen.is_all or self.expected.ratio < LESS:
            checkpointing = "with" if self.checkpointing else "without"
            step = "the mean step of the schedule" if self.scheduled else "a step"
            output.say(
                f"Predicted: {step} is {as_fast(self.expected.speedup)} as with all-layer LoRA, {checkpointing} "
                "gradient checkpointing."
            )
            say_sentences(output, [self.costs])
            quality = quality_word(chosen)
            show_strategies(output.console, self.strategies, chosen.num_layers, quality, self.memory.columns())
            if chosen.score is not None and self.front:
                show_front(output.console, self.front, chosen.score, chosen.num_layers)
            if self.coupling is not None:
                output.say(coupling_line(self.coupling))
            if "unproven" not in chosen.reason and chosen.expected is None:
                output.say(f"Quality: {UNKNOWN_QUALITY}.")
        for line in self.memory.lines():
            output.say(line)
        if hint := learning_rate_hint(chosen):
            output.say(hint)


def _from_cards(placement: LayerPlacement) -> dict[str, Any]:
    """What only Layer Cards can say before a run: memory and quality."""
    seen = placement.expected
    if seen is None:
        quality: dict[str, Any] = {"kind": "unknown", "evidence": placement.evidence, "reason": UNKNOWN_QUALITY}
        return {"peak_memory_ratio": None, "quality": quality, "unavailable": {"peak_memory_ratio": UNKNOWN_MEMORY}}
    memory = seen.get("peak_memory_ratio")
    quality = {"kind": "predicted", "evidence": placement.evidence, "from": list(placement.cards)}
    quality |= {name: seen.get(name) for name in ("outcome", "share_kept", "lowest_share_kept", "gain", "metric")}
    unavailable = {} if memory is not None else {"peak_memory_ratio": UNKNOWN_MEMORY}
    return {"peak_memory_ratio": memory, "quality": quality, "unavailable": unavailable}


def make_plan(
    model: ModelSource,
    data: DataSource,
    settings: PlacementSettings,
    targets: list[str] | None,
    output: Output,
    *,
    checkpointing: bool,
    memory: MemoryAsked,
    time_costs: bool = True,
) -> Plan:
    """Return the plan; weights and data are read only where the choice needs a score, or a Layer Card may decide."""
    if memory.device is None and settings.max_memory is not None:
        memory = replace(memory, device=parse_size(settings.max_memory))
    asked = _asked(model, data, settings, targets, output)
    traced = tracer(asked.bare, asked.stack, targets)
    predicting = partial(_predicting, asked, checkpointing=checkpointing, time_costs=time_costs)
    ahead = _ahead(asked, predicting)
    if ahead is not None:
        asked = replace(asked, predictions=_limits(asked, *ahead, memory, traced))
    check_depth(settings, len(asked.stack), asked.adaptable, **asked.predictions)
    if data.name is not None:
        local_file(data.name)  # a misspelt file is refused, whether the choice reads it or not
    decision, examined = choose(asked)
    placement, differing = _recorded(asked, decision.placement, examined)
    found = ahead[1] if ahead is not None else predicting(placement)
    conditions, scores = found.conditions, examined.scores if examined else {}
    table, left_out = strategy_costs(placement, settings, scores, asked.extensions, conditions)
    told = (*decision.notes, *schedule_lines(placement, settings.schedule), *differing)
    chose = None if placement.score is None else scores.get(placement.score)
    step_ratio = conditions.step_ratio(placement)
    return Plan(
        placement,
        conditions.planned(placement),
        checkpointing,
        examined,
        table,
        found.costs,
        plan_memory(memory, asked.bare, traced, placement, table, conditions),
        (*told, *_notes(asked.bare, asked.stack, targets, placement, found.below), *left_out),
        tuple(front_rows(settings, placement.num_layers, chose, step_ratio, placement.adaptable)),
        coupled(chose, placement.layers),
        bool(conditions.rises),
    )


def _asked(
    model: ModelSource, data: DataSource, settings: PlacementSettings, targets: list[str] | None, output: Output
) -> Asked:
    """Return what the command was given with the model without weights; names that nobody knows are refused first."""
    extensions = plugins.extensions()
    score = needed_score(settings, extensions.strategies)
    if score is not None:
        extensions.scorers[score]
    model = settled(model, data, output.say)
    bare = skeleton(model.name, model.purpose)
    stack = locate_layers(bare, settings.layers_path, extensions)
    adaptable = only_some(layers_holding(bare, stack, targets), len(stack))
    return Asked(model, data, settings, targets, extensions, output, bare, stack, adaptable)


def _ahead(
    asked: Asked, predicting: Callable[[LayerPlacement], _Predicting]
) -> tuple[LayerPlacement, _Predicting] | None:
    """Return all-layer LoRA and what predictions rest on, where costs decide which layers are chosen."""
    score = needed_score(asked.settings, asked.extensions.strategies)
    if asked.settings.cost_setting is None or score is None:
        return None
    asked.require_data(score)
    every = _decided(asked, all_layers(len(asked.stack), asked.adaptable))
    return every, predicting(every)


def _limits(
    asked: Asked, every: LayerPlacement, ahead: _Predicting, memory: MemoryAsked, traced: Traced
) -> Predictions:
    limited = asked.settings.max_memory is not None
    peak = peaks_ahead(memory, asked.bare, ahead.conditions, traced) if limited else None
    return {"step_ratio": ahead.conditions.step_ratio(every), "peak": peak}


def _decided(asked: Asked, placement: LayerPlacement) -> LayerPlacement:
    """Return the placement with what becomes of the other stacks."""
    held = names_held(asked.bare, asked.targets)
    return decided(placement, asked.settings, asked.bare, asked.stack, adapted=held)


def _recorded(
    asked: Asked, placement: LayerPlacement, examined: Examined | None
) -> tuple[LayerPlacement, Sequence[str]]:
    """Return the placement with what it was chosen for, and how that differs where it was read from a file."""
    settings, named = asked.settings, asked.settings.placement_path
    record = record_of_command(asked.model, asked.bare, asked.stack, examined, asked.data, settings, asked.targets)
    check_rises(placement, parse_schedule(settings.schedule))
    placement = _decided(asked, placement)
    differing = () if named is None else check_made_for(placement, named, record)
    return recorded(placement, record, named), differing


@dataclass(frozen=True)
class _Predicting:
    """What a plan's predictions rest on."""

    conditions: StepConditions
    below: list[str]
    """The modules outside the layers that will have adapters and run, or may run, below them."""
    costs: str


def _predicting(asked: Asked, placement: LayerPlacement, *, checkpointing: bool, time_costs: bool) -> _Predicting:
    bare, stack, targets = asked.bare, asked.stack, asked.targets
    below = targets_below(bare, stack, targets, towers_to_shed(bare, stack, placement))
    units, costs = plan_costs(bare, stack, targets, timed=time_costs, adaptable=asked.adaptable)
    conditions = _conditions(asked.settings, units, checkpointing=checkpointing, below=bool(below), placement=placement)
    return _Predicting(conditions, below, costs)


def _conditions(
    settings: PlacementSettings, units: UnitCosts, *, checkpointing: bool, below: bool, placement: LayerPlacement
) -> StepConditions:
    """Checkpointing hosts make the embeddings' output require grad, and whatever is trained below does the same."""
    goes_down = checkpointing or below
    return StepConditions(
        checkpointing=checkpointing,
        gradient_entry=not below and (settings.gradient_entry or not checkpointing),
        recompute_above_entry=below or settings.checkpointing_above_entry != "off",
        units=units,
        all_layer_entry=not goes_down and placement.other_stacks != "shed",
        rises=parse_schedule(settings.schedule),
    )


def _notes(
    bare: Any, stack: LayerStack, targets: list[str] | None, placement: LayerPlacement, below: list[str]
) -> Iterator[str]:
    """What a person should know of the modules outside the layers, and of names that nothing has."""
    missing = unmatched(bare, targets or ())
    if missing:
        yield f"No module is named {one_of(missing)}; PEFT passes over such names without a word"
    towers = sorted({other.tower for other in other_stacks(bare, stack)})
    if placement.other_stacks == "shed":
        yield f"Adapters of {one_of(towers)} are taken out (`other_stacks: keep` trains them); all-layer LoRA has them"
    elif placement.other_stacks == "keep":
        yield f"Adapters of {one_of(towers)} train as well (`other_stacks: shed` takes them out)"
    if below and placement.entry > 0:
        more = f" and {len(below) - 1} more" if len(below) > 1 else ""
        yield (
            f"Backpropagation will not end at layer {placement.entry}, the lowest one adapted; `{below[0]}`{more} will have "
            "adapters, and runs, or may run, below it; leave it out of `target_modules` where it need not be trained"
        )


def difference(saved: LayerPlacement, chosen: LayerPlacement) -> str | None:
    """Return how the layers of `chosen` differ from those of `saved` for people, or None where they are the same."""
    if saved.num_layers != chosen.num_layers:
        return f"it was made for {saved.num_layers} layers, and the model has {chosen.num_layers}"
    if saved.layers == chosen.layers:
        return None
    was, now = describe(saved.layers, saved.num_layers), describe(chosen.layers, chosen.num_layers)
    added = sorted(set(chosen.layers) - set(saved.layers))
    dropped = sorted(set(saved.layers) - set(chosen.layers))
    return f"it holds {was}; the choice is now {now} (added {added}, dropped {dropped})"
