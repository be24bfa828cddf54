"""The model of a run while it trains: `Live` narrows its adapters, moves the gradient entry and caches the prefix."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from layercard.anatomy.gradient_entry import CheckpointingAbove, GradientEntry, find_obstacle
from layercard.anatomy.layers import LayerStack
from layercard.anatomy.narrow import narrow
from layercard.prefix.cache import PrefixCache, find_prefix_obstacle


class Live:
    """Context manager around a PeftModel, at first with every layer adapted and the entry at the input."""

    def __init__(self, model: Any, stack: LayerStack, cache_bytes: int) -> None:
        self.model, self.stack = model, stack
        self.entry = 0
        self.cache: PrefixCache | None = None
        self.memory: dict[str, Any] = {}
        """What an arm keeps from step to step."""
        self._cache_bytes = cache_bytes
        self._undo = ExitStack()
        self._dropped: Collection[int] | None = None

    def __enter__(self) -> Live:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()
        if self._dropped is not None:
            for layer in self.stack.layers:
                del layer.forward

    @property
    def backbone(self) -> Any:
        """The model without its head."""
        return self.model.get_base_model().base_model

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters that train now."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def narrow(self, layers: Sequence[int]) -> None:
        """Take the adapters out of all other layers."""
        if len(layers) < len(self.stack):
            narrow(self.model, self.stack, layers)

    def freeze_below(self, entry: int) -> list[nn.Parameter]:
        """Stop training what lies below layer `entry`, where it stands; return what was stopped."""
        stopped = [p for layer in self.stack.layers[:entry] for p in layer.parameters() if p.requires_grad]
        for parameter in stopped:
            parameter.requires_grad_(False)
            parameter.grad = None
        return stopped

    def enter(self, entry: int, *, checkpointing_above: CheckpointingAbove = "keep") -> None:
        """End backpropagation at layer `entry` from now on, and cache what is below where that is exact and there is memory."""
        self._undo.close()
        self.entry, self.cache = entry, None
        if entry == 0:
            return
        obstacle = find_obstacle(self.model, self.stack, entry)
        if obstacle is not None:
            raise ValueError(obstacle)
        with ExitStack() as undo:
            undo.enter_context(GradientEntry(self.model, self.stack, entry, checkpointing_above=checkpointing_above))
            if self._cache_bytes and find_prefix_obstacle(self.model, self.stack, entry) is None:
                self.cache = undo.enter_context(PrefixCache(self.model, self.stack, entry, self._cache_bytes))
            self._undo = undo.pop_all()

    def drop_backward(self, layers: Collection[int]) -> None:
        """Run `layers` forward without a graph until the next call; their gradient passes straight on to their input."""
        if self._dropped is None:
            for index, layer in enumerate(self.stack.layers):
                layer.forward = _droppable(layer.forward, lambda index=index: index in (self._dropped or ()))
        self._dropped = layers

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Inside the block nothing is read from the cache or put into it."""
        if self.cache is None:
            yield
            return
        self.cache.pause()
        try:
            yield
        finally:
            self.cache.resume()


class _Straight(torch.autograd.Function):
    """A function whose gradient is taken to be that of the identity."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        """Return `run(hidden)`; no graph is recorded in here."""
        found = run(hidden)
        return found.clone() if found is hidden else found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Pass the gradient on."""
        return gradient, None


def _droppable(forward: Callable[..., Tensor], dropped: Callable[[], bool]) -> Callable[..., Tensor]:
    def run(hidden: Tensor, *rest: Any, **named: Any) -> Tensor:
        if not (torch.is_grad_enabled() and dropped()):
            return forward(hidden, *rest, **named)
        found: Tensor = _Straight.apply(hidden, lambda x: forward(x, *rest, **named))
        return found

    return run
