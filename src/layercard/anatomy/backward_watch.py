"""Observes which layers run backward, and names why one below the gradient entry did.

`BackwardWatch` hangs one tensor hook on each layer's output: it fires when the gradient of that output is
computed, which is when the layer's backward begins. It does not time anything and stops nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from layercard.anatomy.input_gradients import input_gradient_hooks
from layercard.anatomy.layers import LayerStack, describe
from layercard.anatomy.trainable_below import trainable_below


class BackwardWatch:
    """Context manager that records which layers of `stack` run backward while it is entered.

    The record outlives the exit; entering again starts a new one. Costs one tensor hook a layer and step.
    """

    def __init__(self, model: nn.Module, stack: LayerStack) -> None:
        self._model, self._stack = model, stack
        self._ran: set[int] = set()
        self._hooks = ExitStack()

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that ran backward since the last entering, ascending."""
        return tuple(sorted(self._ran))

    def __enter__(self) -> BackwardWatch:
        self._ran = set()
        with ExitStack() as hooks:
            for index, layer in enumerate(self._stack.layers):
                hooks.callback(layer.register_forward_hook(self._watch(index)).remove)
            self._hooks = hooks.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.close()

    def _watch(self, index: int) -> Callable[[nn.Module, Any, Any], None]:
        ran = self._ran

        def mark(gradient: Tensor) -> None:
            ran.add(index)

        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple | list) else output  # (batch, tokens, width)
            if isinstance(hidden, Tensor) and hidden.requires_grad:
                hidden.register_hook(mark)

        return hook


def cause_of(model: nn.Module, stack: LayerStack, entry: int, layers: tuple[int, ...]) -> str | None:
    """Return in a sentence why some of `layers`, which ran backward, lie below `entry`; None if none does."""
    below = [layer for layer in layers if layer < entry]
    if not below:
        return None
    found = f"{describe(below, len(stack))} ran backward, below the lowest adapted layer {entry}"
    trainable = trainable_below(model, stack, entry)
    if trainable:
        return f"{found}, because parameters there are trainable (`{trainable[0]}`, {len(trainable)} in all)."
    hooks = sorted({hook.module_name for hook in input_gradient_hooks(model)})
    if hooks:
        return f"{found}, because `enable_input_require_grads` makes the output of `{hooks[0]}` require grad."
    wrapped = sorted({type(m).__name__ for m in model.modules() if "CheckpointWrapper" in type(m).__name__})
    if wrapped:
        return f"{found}, because the layers are wrapped in {wrapped[0]}, which recomputes every layer."
    return f"{found}, because what entered the model required grad itself (`inputs_embeds`, or another hook)."


def hidden_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return the hidden states (batch, tokens, width) that a layer is called with, None where it has none."""
    if args and isinstance(args[0], Tensor):
        return args[0]
    hidden = kwargs.get("hidden_states")
    return hidden if isinstance(hidden, torch.Tensor) else None


def with_hidden(
    args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a layer's call arguments with `hidden` in place of its hidden states."""
    if args and isinstance(args[0], Tensor):
        return (hidden, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": hidden}
