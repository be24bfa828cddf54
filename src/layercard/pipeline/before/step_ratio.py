"""How long a step would take with any layers adapted, told before layers are chosen: what a `budget` is held against.

`outlook.py` predicts the step of a model that is narrowed already. Here all adapters are still there, or none is yet, so what
will train below the layers is what stands outside of them and is not shed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from peft import PeftModel

from layercard.anatomy.adaptable import names_held, targets_below
from layercard.anatomy.adapters import adapter_sites
from layercard.anatomy.checkpoint_names import is_checkpointing
from layercard.anatomy.entry_obstacles import host_obstacle
from layercard.anatomy.input_gradients import input_gradient_hooks
from layercard.anatomy.other_stacks import in_towers
from layercard.anatomy.trainable_below import trainable_below
from layercard.cost.predict import predict_step_ratio
from layercard.cost.unit_costs import estimate_unit_costs
from layercard.pipeline.before.other_parts import decided, towers_to_shed
from layercard.placement.placement import LayerPlacement

if TYPE_CHECKING:
    from torch import nn

    from layercard.anatomy.layers import LayerStack
    from layercard.pipeline.before.looking import RunToPlace
    from layercard.placement.strategies import StepRatio
    from layercard.settings import PlacementSettings


def predicted_ratios(run: RunToPlace) -> StepRatio | None:
    """Return what predicts the step time of any layers over all-layer LoRA's, as `place` will announce it.

    None where no setting weighs costs. The prefix cache is not counted.
    """
    settings, stack = run.settings, run.stack
    if settings.cost_setting is None:
        return None
    ahead, units = look_ahead(run), estimate_unit_costs(run.host.model, stack)

    def step_ratio(layers: Collection[int]) -> float:
        return predict_step_ratio(
            len(stack),
            layers,
            checkpointing=ahead.checkpointing,
            gradient_entry=not ahead.stays or not ahead.goes_down,
            recompute_above_entry=ahead.recompute(settings),
            units=units,
            adaptable=ahead.every.every_layer,
            all_layer_entry=not ahead.goes_down and ahead.every.other_stacks != "shed",
        )

    return step_ratio


@dataclass(frozen=True)
class Ahead:
    """What a step's costs rest on, told before layers are chosen."""

    every: LayerPlacement
    """All-layer LoRA."""
    checkpointing: bool
    goes_down: bool
    """Whether backpropagation goes to the model's input where the entry is not moved."""
    stays: bool
    """Whether the entry will not be moved."""

    def recompute(self, settings: PlacementSettings) -> bool:
        """Return whether what is checkpointed stays so above the entry."""
        return self.stays or settings.checkpointing_above_entry != "off"


def look_ahead(run: RunToPlace) -> Ahead:
    """Return what the costs of any placement of the run rest on."""
    settings, stack, target_modules = run.settings, run.stack, run.target_modules
    model, args = run.host.model, run.host.trainer.args
    every = all_layers(len(stack), run.adaptable)
    paths = (
        [s.path for s in adapter_sites(model)] if isinstance(model, PeftModel) else names_held(model, target_modules)
    )
    every = decided(every, settings, model, stack, adapted=paths)
    checkpointing, below = is_checkpointing(args), _trained_below(model, stack, target_modules, every)
    goes_down = checkpointing or bool(input_gradient_hooks(model)) or below
    stays = below or not settings.gradient_entry or host_obstacle(model, stack, args) is not None
    return Ahead(every, checkpointing, goes_down, stays)


def all_layers(num_layers: int, adaptable: tuple[int, ...] | None) -> LayerPlacement:
    """Return all-layer LoRA as a placement."""
    layers = tuple(range(num_layers)) if adaptable is None else adaptable
    return LayerPlacement(layers, num_layers, "all", None, "all-layer LoRA", adaptable=adaptable)


def _trained_below(
    model: nn.Module, stack: LayerStack, target_modules: Sequence[str] | None, every: LayerPlacement
) -> bool:
    """Whether something outside the layers will train, and run below them or perhaps below them."""
    towers = towers_to_shed(model, stack, every)
    if not isinstance(model, PeftModel):
        return bool(targets_below(model, stack, target_modules, towers))
    outside = (name for name in trainable_below(model, stack, len(stack)) if stack.layer_of(name) is None)
    return any(not in_towers(name, towers) for name in outside)
