"""`as_found`: run a block on a frozen, noiseless model in training mode, and leave the model exactly as it came.

`noiseless` is the part of it that leaves adapters and what trains as they are: what a loss is judged by.

Training mode because the memory of a pass should be that of a training step, gradient checkpointing included; every
dropout is at p = 0, adapters are disabled, nothing requires grad. Modes, `requires_grad`, gradients, random state,
dropout, cache and checkpointing flags are put back, also when the block fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from layercard.anatomy.layers import LayerStack
from layercard.random_state import random_state

NOISE = ("dropout", "drop_prob", "layerdrop", "jitter_noise", "neftune_noise_alpha")


@contextmanager
def as_found(model: nn.Module, stack: LayerStack, *, checkpointing: bool | None = None) -> Iterator[None]:
    """Hold the model still for the block. `checkpointing` None keeps what the model has; it is made non-reentrant."""
    with ExitStack() as undo:
        _hold_still(undo, model)
        _checkpoint(undo, model, stack, checkpointing)
        _freeze(undo, model)
        undo.enter_context(_without_adapters(model))
        yield


@contextmanager
def noiseless(model: nn.Module) -> Iterator[None]:
    """Run forwards in training mode without noise or checkpointing inside the block, whatever trains.

    Training mode because a forward in evaluation mode repacks 4-bit weights on a CPU, through which no gradient flows
    afterwards.
    """
    with ExitStack() as undo:
        _hold_still(undo, model)
        for module in model.modules():
            if hasattr(module, "gradient_checkpointing"):
                _set(undo, module, "gradient_checkpointing", False)
        yield


def _hold_still(undo: ExitStack, model: nn.Module) -> None:
    undo.enter_context(random_state())
    for name in ("use_cache", "output_router_logits", "apply_spec_augment"):  # the last hides stretches of sound
        _set_in_configs(undo, model, name, lambda _: False)
    _set_in_configs(undo, model, "problem_type", lambda found: found)  # classifiers fill it in at their first loss
    for module in model.modules():
        _set(undo, module, "training", True)
        _silence(undo, module)


def _set(undo: ExitStack, owner: Any, name: str, value: Any) -> None:
    """Set an attribute and remember how it was, including whether it stood on the instance at all."""
    held = vars(owner)
    before: Callable[[], Any] = (
        partial(held.__setitem__, name, held[name]) if name in held else partial(held.pop, name, None)
    )
    undo.callback(before)
    held[name] = value


def _set_in_configs(undo: ExitStack, model: nn.Module, name: str, change: Callable[[Any], Any]) -> None:
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        return
    for each in {id(c): c for c in (config, config.get_text_config())}.values():
        if hasattr(each, name):
            found = getattr(each, name)
            undo.callback(setattr, each, name, found)
            setattr(each, name, change(found))


def _silence(undo: ExitStack, module: nn.Module) -> None:
    if isinstance(module, nn.modules.dropout._DropoutNd):
        _set(undo, module, "p", 0.0)
    for name, value in list(vars(module).items()):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and value != 0 and any(noise in name for noise in NOISE):
            _set(undo, module, name, 0.0)


def _checkpoint(undo: ExitStack, model: nn.Module, stack: LayerStack, wanted: bool | None) -> None:
    function = partial(checkpoint, use_reentrant=False)
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing"):
            is_layer = any(module is layer for layer in stack.layers)
            on = module.gradient_checkpointing if wanted is None or not is_layer else wanted
            _set(undo, module, "gradient_checkpointing", on)
            if on:
                _set(undo, module, "_gradient_checkpointing_func", function)


def _freeze(undo: ExitStack, model: nn.Module) -> None:
    for parameter in model.parameters():
        undo.callback(_put_back, parameter, parameter.requires_grad, parameter.grad)
        if parameter.requires_grad:
            parameter.requires_grad_(False)
        parameter.grad = None


def _put_back(parameter: nn.Parameter, requires_grad: bool, grad: torch.Tensor | None) -> None:
    parameter.requires_grad_(requires_grad)
    parameter.grad = grad


@contextmanager
def _without_adapters(model: nn.Module) -> Iterator[None]:
    """Disable adapters without PEFT's own context manager, which sets `requires_grad` as it thinks fit at exit."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    with ExitStack() as undo:
        for module in model.modules():
            if isinstance(module, BaseTunerLayer | ModulesToSaveWrapper):
                _set(undo, module, "_disable_adapters", True)
        yield
