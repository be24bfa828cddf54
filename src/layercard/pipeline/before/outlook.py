"""How long a placed step is expected to take, from what the model trains and what stands in the way of the gradient entry.

Offers `Outlook`. With something trained below the layers, or with the host's input-gradient hooks in force, backpropagation
goes down to the input whatever is placed; then only the adapters that are left out are saved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from layercard.anatomy.checkpoint_names import is_checkpointing
from layercard.anatomy.freezing import frozen_below
from layercard.anatomy.gradient_entry import find_obstacle, trainable_below
from layercard.anatomy.input_gradients import input_gradient_hooks
from layercard.cost.predict import StepPrediction, UnitCosts, mean_prediction, predict_step
from layercard.placement.phases import FINELY, Phase, left, phases
from layercard.settings.schedule import parse_schedule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from layercard.anatomy.layers import LayerStack
    from layercard.placement.placement import LayerPlacement
    from layercard.settings import PlacementSettings

OFF = "`gradient_entry` is off."


@dataclass(frozen=True)
class Outlook:
    """The predicted step of a narrowed model, and why backpropagation cannot end at its lowest adapted layer, or None."""

    step: StepPrediction
    obstacle: str | None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        stack: LayerStack,
        placement: LayerPlacement,
        settings: PlacementSettings,
        args: Any,
        units: UnitCosts | None = None,
        steps: int | None = None,
    ) -> Outlook:
        """Return the outlook of `model`, narrowed to `placement`, under the trainer's `args`, in `steps` optimizer steps."""
        if parse_schedule(settings.schedule):
            parts = left(planned_phases(placement, settings, args, steps), 0)
            return cls(*predicted_schedule(model, stack, placement, settings, args, parts, units))
        obstacle = find_obstacle(model, stack, placement.entry, args) if settings.gradient_entry else OFF
        return cls(predicted_step(model, stack, placement, settings, args, obstacle, units), obstacle)


def predicted_step(
    model: nn.Module,
    stack: LayerStack,
    placement: LayerPlacement,
    settings: PlacementSettings,
    args: Any,
    obstacle: str | None,
    units: UnitCosts | None = None,
    *,
    resting: int = 0,
) -> StepPrediction:
    """Return the predicted placed step beside that of all-layer LoRA; `obstacle` keeps the gradient entry where it was.

    `resting` layers below have adapters that learn no more.
    """
    checkpointing = is_checkpointing(args)
    trained_below = bool(trainable_below(model, stack, placement.entry))
    host_goes_down = checkpointing or bool(input_gradient_hooks(model)) or trained_below
    return predict_step(
        placement.num_layers,
        placement.layers,
        checkpointing=checkpointing,
        gradient_entry=obstacle is None or not host_goes_down,
        recompute_above_entry=obstacle is not None or settings.checkpointing_above_entry != "off",
        resting=resting,
        units=units,
        adaptable=placement.every_layer,
        all_layer_entry=not host_goes_down and placement.other_stacks != "shed",
    )


def planned_phases(
    placement: LayerPlacement, settings: PlacementSettings, args: Any, steps: int | None
) -> tuple[Phase, ...]:
    """Return the phases of a run of `steps` optimizer steps under the trainer's `args`; of a run of unknown length, in parts."""
    known = FINELY if steps is None else steps
    warm_up = 0 if steps is None and args.warmup_steps >= 1 else args.get_warmup_steps(known)
    return phases(placement, parse_schedule(settings.schedule), known, warm_up=warm_up)


def put_off(placement: LayerPlacement, settings: PlacementSettings, args: Any, steps: int | None) -> str | None:
    """Return in a sentence that a schedule begins later in this run than it says, or does nothing in it; else None."""
    rises = parse_schedule(settings.schedule)
    if not rises or steps is None:
        return None
    warm_up = args.get_warmup_steps(steps)
    waits = any(round(rise.after * steps) < warm_up for rise in rises)
    if len(planned_phases(placement, settings, args, steps)) == 1:
        why = f"{warm_up:,} of its {steps:,} optimizer steps are warm-up, and no layer stops learning before that ends"
        few = f"it has {steps:,} optimizer step{'s' * (steps != 1)}, and none is left when a layer should stop learning"
        return f"The schedule does nothing in this run: {why if waits else few}."
    return (
        f"Warm-up takes {warm_up / steps:.0%} of the steps, and no layer stops learning before it ends."
        if waits
        else None
    )


def predicted_schedule(
    model: nn.Module,
    stack: LayerStack,
    placement: LayerPlacement,
    settings: PlacementSettings,
    args: Any,
    phases_left: Sequence[tuple[float, Phase]],
    units: UnitCosts | None = None,
) -> tuple[StepPrediction, str | None]:
    """Return the predicted mean step of a schedule's phases, and what keeps the gradient entry from rising, or None."""
    parts, obstacle = [], None
    for share, phase in phases_left:
        learning = phase.placement
        with frozen_below(stack, learning.entry):
            obstacle = find_obstacle(model, stack, learning.entry, args)
            resting = len(placement.layers) - len(learning.layers)
            step = predicted_step(model, stack, learning, settings, args, obstacle, units, resting=resting)
        parts.append((share, step))
    return mean_prediction(parts), obstacle
