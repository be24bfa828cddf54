"""Makes a plan for a command: the placement, the step ratio expected of it, and how it differs from a saved one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click
import pluggy
from transformers import PreTrainedModel

from layercard import plugins
from layercard.anatomy.layers import LayerStack, describe
from layercard.cli.examine import Examined, examine
from layercard.cli.loading import skeleton
from layercard.cli.options import DataSource, ModelSource
from layercard.cli.output import Output
from layercard.cli.tables import show_layers
from layercard.cost.predict import StepPrediction, UnitCosts, predict_step
from layercard.pipeline.probing import locate_layers
from layercard.placement.choose import check_depth, choose_placement, needed_score
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

    def document(self) -> dict[str, Any]:
        """Return what `layercard plan --json` prints."""
        examined = self.examined.document() if self.examined else None
        return {
            "placement": self.placement.to_dict(),
            "expected": {
                "step_speedup": self.expected.speedup,
                "step_ratio": self.expected.ratio,
                "gradient_checkpointing": self.checkpointing,
                "peak_memory_ratio": None,
                "quality": {"kind": "unknown", "reason": UNKNOWN_QUALITY},
                "unavailable": {"peak_memory_ratio": UNKNOWN_MEMORY},
            },
            "scores": examined["scores"] if examined else {},
            "probe": examined["probe"] if examined else None,
        }

    def show(self, output: Output) -> None:
        """Print it for people."""
        chosen = self.placement
        if self.examined is not None:
            show_layers(output.console, self.examined.scores, chosen.layers)
        output.say(f"Adapt {describe(chosen.layers, chosen.num_layers)}: {chosen.reason}.")
        if not chosen.is_all:
            checkpointing = "with" if self.checkpointing else "without"
            output.say(
                f"Predicted step time: {self.expected.ratio:.2f} of all-layer LoRA's ({self.expected.speedup:.2f}x faster), "
                f"{checkpointing} gradient checkpointing."
            )
            if "unproven" not in chosen.reason:
                output.say(f"Quality: {UNKNOWN_QUALITY}.")
        if hint := learning_rate_hint(chosen):
            output.say(hint)


def make_plan(
    model: ModelSource,
    data: DataSource,
    settings: PlacementSettings,
    targets: list[str] | None,
    output: Output,
    *,
    checkpointing: bool,
) -> Plan:
    """Return the plan; weights and data are read only where the choice needs a score."""
    manager = plugins.manager()
    strategies = plugins.strategies(manager)
    score = needed_score(settings, strategies)
    if score is not None:
        plugins.scorers(manager)[score]
    bare = skeleton(model.name)
    stack = locate_layers(bare, settings.layers_path, manager)
    check_depth(settings, len(stack))
    examined = None if score is None else _examined(model, data, settings, score, targets, manager, output)
    placement = choose_placement(
        settings, len(stack), strategies=strategies, scores=examined.scores if examined else None
    )
    expected = predict_step(
        len(stack),
        placement.layers,
        checkpointing=checkpointing,
        gradient_entry=settings.gradient_entry,
        recompute_above_entry=settings.checkpointing_above_entry != "off",
        units=unit_costs(bare, stack),
    )
    return Plan(placement, expected, checkpointing, examined)


def _examined(
    model: ModelSource,
    data: DataSource,
    settings: PlacementSettings,
    score: str,
    targets: list[str] | None,
    manager: pluggy.PluginManager,
    output: Output,
) -> Examined:
    if data.name is None:
        raise click.UsageError(
            f"The strategy `{settings.strategy}` reads the score `{score}`, which needs examples. Give `--dataset`."
        )
    return examine(model, data, settings, [score], targets, manager, output)


def unit_costs(model: PreTrainedModel, stack: LayerStack) -> UnitCosts:
    """Return unit costs with the head that the model has, by its parameters; it may be on the meta device."""
    head = model.get_output_embeddings()
    in_head = 0 if head is None else sum(p.numel() for p in head.parameters())
    in_layers = sum(p.numel() for layer in stack.layers for p in layer.parameters())
    return UnitCosts.with_head(in_head, max(1, in_layers // len(stack)))


def difference(saved: LayerPlacement, chosen: LayerPlacement) -> str | None:
    """Return how `chosen` differs from `saved` for people, or None where the layers are the same."""
    if saved.num_layers != chosen.num_layers:
        return f"it was made for {saved.num_layers} layers, and the model has {chosen.num_layers}"
    if saved.layers == chosen.layers:
        return None
    was, now = describe(saved.layers, saved.num_layers), describe(chosen.layers, chosen.num_layers)
    added = sorted(set(chosen.layers) - set(saved.layers))
    dropped = sorted(set(saved.layers) - set(chosen.layers))
    return f"it holds {was}; the choice is now {now} (added {added}, dropped {dropped})"
