"""Marks what goes into a reentrant checkpoint as requiring grad, where a layer's own hooks cannot.

Up to transformers 5.20 a layer checkpoints its `__call__`, so its forward pre-hooks run inside the checkpoint, where its
input is cut off already; later ones checkpoint `forward`, and hooks run outside. Offers `hooks_run_inside` and
`MarkedCheckpoint`. Knows nothing of entries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

_FUNCTION = "_gradient_checkpointing_func"


def hooks_run_inside(layer: nn.Module) -> bool:
    """Whether the forward hooks of `layer` run inside its checkpoint."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return isinstance(layer, GradientCheckpointingLayer) and "__call__" in vars(GradientCheckpointingLayer)


class MarkedCheckpoint:
    """Wraps the checkpoint function of one layer until `remove`; `install` again follows a host that set a new one."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer
        self._found: Callable[..., Any] | None = None

    def install(self) -> None:
        """Wrap the layer's checkpoint function where it is not wrapped."""
        function = vars(self._layer).get(_FUNCTION)
        if function is not None and function != self._marked:
            self._found = function
            vars(self._layer)[_FUNCTION] = self._marked

    def remove(self) -> None:
        """Put the layer's function back, unless a host has set another since."""
        if vars(self._layer).get(_FUNCTION) == self._marked:
            vars(self._layer)[_FUNCTION] = self._found

    def _marked(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        assert self._found is not None
        if args and isinstance(args[0], Tensor):  # hidden states (batch, tokens, width)
            args = (args[0].detach().requires_grad_(), *args[1:])
        return self._found(function, *args, **kwargs)
