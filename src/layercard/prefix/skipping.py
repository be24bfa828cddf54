"""Lets a model's own forward run from the entry layer up, with given hidden states in place of the prefix.

`PrefixSwitch` owns the hooks. The model computes everything but the prefix layers itself: embeddings,
positions, masks, rotary embeddings. It knows nothing of caches. A part of the prefix can be skipped too, and the rest run.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from layercard.anatomy.backward_watch import hidden_of, with_hidden
from layercard.anatomy.layers import LayerStack


class _EntryReachedError(Exception):
    """Ends a forward pass whose only purpose was the hidden states at the entry."""


class PrefixSwitch:
    """Context manager that can replace the layers below `entry` by given hidden states, and compute those.

    `side_channel` names what a prefix layer returned beside hidden states, None where that was nothing.
    """

    def __init__(self, backbone: nn.Module, stack: LayerStack, entry: int) -> None:
        self._backbone, self._stack, self._entry = backbone, stack, entry
        self._given: Tensor | None = None
        self._skipped = entry
        self._reached: Tensor | None = None
        self._stopping = False
        self._returns: dict[int, int | None] = {}
        self._undo = ExitStack()
        self.side_channel: str | None = None

    def __enter__(self) -> PrefixSwitch:
        with ExitStack() as undo:
            for index in range(self._entry):
                self._replace_forward(index, undo)
            entry = self._stack.layers[self._entry]
            hook = entry.register_forward_pre_hook(self._at_entry, prepend=True, with_kwargs=True)
            undo.callback(hook.remove)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()
        self._given = None

    def give(self, hidden: Tensor | None) -> None:
        """Skip the prefix from now on and hand `hidden` (batch, tokens, width) to the entry; None: run the prefix."""
        self._given = hidden

    @contextmanager
    def giving(self, hidden: Tensor | None, skipped: int | None = None) -> Iterator[None]:
        """`give` for the length of a block; where only the lowest `skipped` layers are skipped, to the layer above those."""
        before = self._given, self._skipped
        self._given, self._skipped = hidden, self._entry if skipped is None else skipped
        try:
            yield
        finally:
            self._given, self._skipped = before

    def compute(self, call: Mapping[str, Any], below: tuple[int, Tensor] | None = None) -> Tensor:
        """Run the backbone on `call` up to the entry, without a graph; return the hidden states there.

        `below`: from a layer of the prefix up alone, on its input (batch, tokens, width); from the bottom where None.
        """
        skipped, hidden = below or (None, None)
        self._stopping = True
        try:
            with torch.no_grad(), self.giving(hidden, skipped):
                self._backbone(**call)
        except _EntryReachedError:
            pass
        finally:
            self._stopping = False
        reached, self._reached = self._reached, None
        if reached is None:
            raise RuntimeError(f"{type(self._backbone).__name__} did not call layer {self._entry}.")
        return reached

    def _replace_forward(self, index: int, undo: ExitStack) -> None:
        layer: Any = self._stack.layers[index]
        found = vars(layer).get("forward")
        undo.callback(_restore_forward, layer, found)
        layer.forward = self._forward_or_pass(index, layer.forward)

    def _forward_or_pass(self, index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if self._given is not None and index < self._skipped:
                last = index == self._skipped - 1  # from here, too: the entry's hooks may run inside its checkpoint
                return self._as_returned(index, self._given if last else hidden_of(args, kwargs))
            if self._given is not None and index == self._skipped:
                args, kwargs = with_hidden(args, kwargs, self._given)
            output = forward(*args, **kwargs)
            self._note_output(index, output)
            return output

        run.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
        return run

    def _note_output(self, index: int, output: Any) -> None:
        if index in self._returns:
            return
        self._returns[index] = len(output) if isinstance(output, tuple) else None
        if isinstance(output, tuple) and any(part is not None for part in output[1:]):
            self.side_channel = f"layer {index} returns more than hidden states"

    def _as_returned(self, index: int, hidden: Tensor | None) -> Any:
        """A tuple where the layer returns one, padded with None."""
        length = self._returns[index]
        return hidden if length is None else (hidden, *[None] * (length - 1))

    def _at_entry(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._stopping:
            self._reached = hidden_of(args, kwargs)
            raise _EntryReachedError
        return None if self._given is None else with_hidden(args, kwargs, self._given)


def _restore_forward(layer: Any, found: Callable[..., Any] | None) -> None:
    """`found` is None where the class's own forward stood."""
    if found is None:
        del layer.forward
    else:
        layer.forward = found
