"""Makes a plan for a command: the placement, the step ratio expected of it, and how it differs from a saved one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from layercard import plugins
from layercard.anatomy.layers import describe
from layercard.cli.choosing import Asked, choose
from layercard.cli.costs import plan_costs
from layercard.cli.examine import Examined
from layercard.cli.loading import settled, skeleton
from layercard.cli.options import DataSource, ModelSource
from layercard.cli.output import Output
from layercard.cli.recording import record_of_command
from layercard.cli.strategy_table import StrategyCost, show_strategies, strategy_costs
from layercard.cli.strategy_table import document as strategies_document
from layercard.cli.tables import show_layers
from layercard.cost.predict import StepPrediction, predict_step
from layercard.pipeline.probing import locate_layers
from layercard.pipeline.record import recorded
from layercard.pipeline.resume import check_made_for
from layercard.placement.choose import check_depth, needed_score
from layercard.placement.hints import learning_rate_hint
from layercard.placement.placement import LayerPlacement
from layercard.settings import PlacementSettings

UNKNOWN_QUALITY = "no Layer Card says what this placement achieves; quality is unproven"
UNKNOWN_MEMORY = "peak memory is measured in a run, not predicted"


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
    notes: tuple[str, ...] = ()
    """What a person should know of the Layer Cards that were consulted."""

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
            "strategies": strategies_document(self.strategies),
            "costs": self.costs,
            "scores": examined["scores"] if examined else {},
            "probe": examined["probe"] if examined else None,
        }

    def show(self, output: Output) -> None:
        """Print it for people."""
        chosen = self.placement
        if self.examined is not None:
            show_layers(output.console, self.examined.scores, chosen.layers)
        output.say(f"Adapt {describe(chosen.layers, chosen.num_layers)}: {chosen.reason}.")
        for note in self.notes:
            output.say(note)
        if not chosen.is_all:
            checkpointing = "with" if self.checkpointing else "without"
            output.say(
                f"Predicted step time: {self.expected.ratio:.2f} of all-layer LoRA's ({self.expected.speedup:.2f}x faster), "
                f"{checkpointing} gradient checkpointing; {self.costs}."
            )
            show_strategies(output.console, self.strategies, chosen.num_layers)
            if "unproven" not in chosen.reason and chosen.expected is None:
                output.say(f"Quality: {UNKNOWN_QUALITY}.")
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
    time_costs: bool = True,
) -> Plan:
    """Return the plan; weights and data are read only where the choice needs a score, or a Layer Card may decide."""
    manager = plugins.manager()
    strategies = plugins.strategies(manager)
    score = needed_score(settings, strategies)
    if score is not None:
        plugins.scorers(manager)[score]
    model = settled(model, data, output.say)
    bare = skeleton(model.name, model.purpose)
    stack = locate_layers(bare, settings.layers_path, manager)
    check_depth(settings, len(stack))
    decision, examined = choose(Asked(model, data, settings, targets, manager, output, bare, stack))
    named = settings.placement_path
    record = record_of_command(model, bare, stack, examined, data, settings, targets)
    notes = decision.notes if named is None else (*decision.notes, *check_made_for(decision.placement, named, record))
    placement = recorded(decision.placement, record, named)
    units, costs = plan_costs(bare, stack, targets, timed=time_costs)
    expected = predict_step(
        len(stack),
        placement.layers,
        checkpointing=checkpointing,
        gradient_entry=settings.gradient_entry,
        recompute_above_entry=settings.checkpointing_above_entry != "off",
        units=units,
    )
    scores = examined.scores if examined else {}
    table = strategy_costs(placement, settings, scores, manager, checkpointing=checkpointing, units=units)
    return Plan(placement, expected, checkpointing, examined, table, costs, notes)


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
