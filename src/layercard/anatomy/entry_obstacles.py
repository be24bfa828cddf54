"""What stands in the way of ending backpropagation at a layer, told before training: `find_obstacle`, `is_reentrant`."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from layercard.anatomy.checkpoint_names import current_name, is_checkpointing
from layercard.anatomy.layers import LayerStack
from layercard.anatomy.trainable_below import first_tower, obstacle_below


def find_obstacle(model: nn.Module, stack: LayerStack, entry: int, args: Any = None) -> str | None:
    """Return in one sentence why backpropagation cannot end at layer `entry`, or None where it can.

    Parameters: `model` as it trains; `stack` its layers; `args` the trainer's `TrainingArguments`, where
    there are any.
    """
    return obstacle_below(model, stack, entry) or host_obstacle(model, stack, args)


def host_obstacle(model: nn.Module, stack: LayerStack, args: Any = None) -> str | None:
    """Return in one sentence what of the host keeps backpropagation from ending at any layer, or None."""
    return (
        _sharding(model, args)
        or _layer_offloading(args)
        or _checkpointing_outside_layers(model, stack)
        or _reentrant_reader(model, stack, args)
    )


def _sharding(model: nn.Module, args: Any) -> str | None:
    from transformers.integrations import is_deepspeed_zero3_enabled

    plugin = None if args is None else vars(args).get("deepspeed_plugin")
    stage3 = plugin is not None and plugin.zero_stage == 3
    if stage3 or is_deepspeed_zero3_enabled() or any(hasattr(p, "ds_id") for p in model.parameters()):
        return "DeepSpeed ZeRO-3 gathers a layer's weights in its backward, which has to run for every layer."
    fsdp = None if args is None else vars(args).get("fsdp_config")
    wrapped = any("CheckpointWrapper" in type(module).__name__ for module in model.modules())
    if wrapped or (isinstance(fsdp, dict) and fsdp.get("activation_checkpointing") and vars(args).get("fsdp")):
        return "FSDP's own activation checkpointing wraps every layer and recomputes it from outside."
    return None


def _layer_offloading(args: Any) -> str | None:
    if args is not None and vars(args).get("layer_offloading"):
        return "`layer_offloading` moves frozen layers between devices by hooks on their backward."
    return None


def _checkpointing_outside_layers(model: nn.Module, stack: LayerStack) -> str | None:
    """Old models checkpoint in the loop over layers; inside a reentrant one, an input cannot be marked."""
    for module in model.modules():
        active = "gradient_checkpointing" in vars(module) and module.gradient_checkpointing
        if active and is_reentrant(module) and not any(hasattr(x, "gradient_checkpointing") for x in stack.layers):
            return f"{type(module).__name__} checkpoints its layers from outside with `use_reentrant=True`; {_not_reentrant()}"
    return None


def _not_reentrant() -> str:
    return f"set `{current_name()}_kwargs={{'use_reentrant': False}}`."


def _reentrant_reader(model: nn.Module, stack: LayerStack, args: Any) -> str | None:
    """A decoder reads its encoder beside its own input; a reentrant checkpoint may not see that require grad."""
    tower = first_tower(model, stack)
    if tower is None:
        return None
    kwargs = None if args is None else vars(args).get(f"{current_name()}_kwargs")
    if kwargs and kwargs.get("use_reentrant") and is_checkpointing(args):
        return f"What runs after the placed layers is checkpointed with `use_reentrant=True`; {_not_reentrant()}"
    inside = {id(module) for module in tower.modules()}
    for module in model.modules():
        if id(module) not in inside and vars(module).get("gradient_checkpointing") and is_reentrant(module):
            return (
                f"{type(module).__name__}, which runs after the placed layers, is checkpointed with `use_reentrant=True`; "
                f"{_not_reentrant()}"
            )
    return None


def is_reentrant(module: nn.Module) -> bool:
    """Whether the module is checkpointed with `use_reentrant=True`, torch's own default."""
    function = vars(module).get("_gradient_checkpointing_func")
    if isinstance(function, functools.partial):
        return function.keywords.get("use_reentrant") is not False
    return True
