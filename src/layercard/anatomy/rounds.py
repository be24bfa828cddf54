"""`Rounds`: tells whether a model calls a layer again within one forward pass.

Looped transformers run some of their layers several times in a pass. From the second round on, what enters a layer depends
on the layers above it, adapted ones among them.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import nn

from layercard.anatomy.layers import LayerStack

LOOPED = "the model runs its layers several times in one pass, and later rounds read what adapted layers returned"


class Rounds:
    """Counts calls of layers between the beginning and the end of a forward pass of `model`."""

    def __init__(self, model: nn.Module, stack: LayerStack) -> None:
        self._owners = [model.get_submodule(path) for path in _prefixes(stack.path)]
        self._depth = 0
        self._called: set[int] = set()

    def register(self, undo: ExitStack) -> None:
        """Watch passes until `undo` is closed; some hosts call the backbone, and not the model around it."""
        for module in self._owners:
            undo.callback(module.register_forward_pre_hook(self._begin).remove)
            undo.callback(module.register_forward_hook(self._end, always_call=True).remove)

    def is_second(self, layer: int) -> bool:
        """Note a call of `layer`; return whether this pass called it before. Outside of a pass: a recomputation, no call."""
        if self._depth == 0:
            return False
        second = layer in self._called
        self._called.add(layer)
        return second

    def _begin(self, module: nn.Module, args: Any) -> None:
        if self._depth == 0:
            self._called.clear()
        self._depth += 1

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        self._depth = max(0, self._depth - 1)


def _prefixes(path: str) -> list[str]:
    """The paths of the modules that hold the stack, the outermost first; a list of layers is never called."""
    parts = path.split(".")[:-1]
    return ["", *(".".join(parts[: i + 1]) for i in range(len(parts)))]
