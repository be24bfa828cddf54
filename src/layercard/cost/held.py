"""What a layer or the head holds in one forward and backward pass, counted by running it on its own.

The counter sees storages that operations allocate, so parameters, and what the pass is called with, are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from layercard.anatomy.backward_watch import hidden_of, with_hidden
from layercard.cost.memory import LiveBytes
from layercard.cost.peak import PassBytes
from layercard.errors import ModelError

TILE_ROWS, TILE_COLUMNS = 4096, 32768
"""How much of the logits a tiled head holds at once: TRL's tile of tokens and vocabulary."""
TORCH_TILE_BYTES = 29
"""A number of the tile more where torch operations and no kernel work on it: seven float32 copies and a mask."""


@dataclass(frozen=True)
class Call:
    """What a model calls a layer with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def hidden(self) -> Tensor:
        """The hidden states, (batch, tokens, width); raises `ModelError` where there are none."""
        hidden = hidden_of(self.args, self.kwargs)
        if hidden is None:
            raise ModelError("A layer is not called with hidden states, so its memory cannot be counted alone.")
        return hidden

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor in it."""
        return [leaf for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]

    def of_full_rows(self, layer: nn.Module) -> Call:
        """The call of a batch without padding: attention then needs no mask, where it attends to all that came before.

        Without values nobody sees that rows are full and of one document, so transformers makes the mask.
        """
        mask, tokens = self.kwargs.get("attention_mask"), self.hidden.shape[-2]
        windows = [vars(module).get("sliding_window") for module in layer.modules()]
        if (
            not isinstance(mask, Tensor)
            or mask.dtype != torch.bool
            or any(w is not None and w <= tokens for w in windows)
        ):
            return self
        return Call(self.args, self.kwargs | {"attention_mask": None})


def calls_of(
    model: nn.Module, layers: tuple[nn.Module, ...], batch: Mapping[str, Tensor], autocast: torch.dtype | None
) -> list[Call]:
    """Return what `model` calls each of its `layers` with; raises `ModelError` where it does not run all of them."""
    calls: dict[int, Call] = {}

    def keep(number: int) -> Any:
        return lambda _, args, kwargs: calls.__setitem__(number, Call(args, kwargs))

    hooks = [layer.register_forward_pre_hook(keep(n), with_kwargs=True) for n, layer in enumerate(layers)]
    try:
        with torch.no_grad(), mixed(autocast):
            model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    if len(calls) != len(layers):
        raise ModelError(f"{type(model).__name__} does not run all its layers, so its memory cannot be predicted.")
    return [calls[number] for number in range(len(layers))]


def mixed(autocast: torch.dtype | None) -> AbstractContextManager[Any]:
    """Return what mixed precision in this dtype runs in; None computes in the dtypes at hand."""
    return nullcontext() if autocast is None else torch.autocast("cpu", autocast)


def size(tensors: Any) -> int:
    """Return the bytes of these tensors, those that share storage counted once."""
    storages = {id(tensor.untyped_storage()): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def held_by_layer(layer: nn.Module, call: Call, autocast: torch.dtype | None, *, requires_grad: bool) -> PassBytes:
    """Run the layer forward and backward and return what it held; `requires_grad` says whether its input does.

    Where nothing in it requires a gradient it keeps nothing and runs forward alone.
    """
    leaf = torch.empty_like(call.hidden).requires_grad_(requires_grad)  # autograd keeps leaves alive, saved or not
    with LiveBytes() as live:
        hidden = leaf.clone()
        args, kwargs = with_hidden(call.args, call.kwargs, hidden)
        with mixed(autocast):
            output = _hidden_output(layer(*args, **kwargs))
        forward = live.peak
        if not output.requires_grad:
            return PassBytes(0, forward, forward)
        gradient, edge = torch.empty_like(output), torch.autograd.graph.get_gradient_edge(output)
        del args, kwargs, hidden, output  # only what was saved stays alive
        kept = live.now - size([gradient])
        live.forget_peak()
        torch.autograd.backward([edge], [gradient])
    return PassBytes(kept, forward, live.peak)


def held_by_head(model: nn.Module, last: nn.Module, batch: Mapping[str, Tensor], autocast: torch.dtype | None) -> int:
    """Return the highest sum from the output of `last`, the last layer, up to the loss and back, that output counted in."""
    live, entered = LiveBytes(), 0

    def begin(module: nn.Module, inputs: Any, output: Any) -> Any:
        nonlocal entered
        counting.enter_context(live)  # what was there before is not seen, nor when it goes
        hidden = _hidden_output(output).detach()
        entered = size([hidden])
        hidden.requires_grad_()
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    with ExitStack() as counting, mixed(autocast):
        hook = last.register_forward_hook(begin)
        try:
            loss: Tensor = model(**batch).loss
        finally:
            hook.remove()
        loss.backward()
    return entered + live.peak


def held_by_tiles(hidden: Tensor, head: Tensor, autocast: torch.dtype | None, *, in_place: bool) -> int:
    """Return the highest sum in a head that never holds all logits, from shapes alone.

    `hidden` are the last layer's output, `head` the weights (vocabulary, width); `in_place` says whether a kernel works on
    a tile. Held are the hidden states before and after the last norm, their gradient in float32 and in their own dtype,
    one tile of logits in what is computed in, and what is cast of the weights.
    """
    compute = autocast or hidden.dtype
    rows = min(hidden.numel() // hidden.shape[-1], TILE_ROWS)
    columns = min(head.shape[0], TILE_COLUMNS)
    tile = rows * TILE_COLUMNS * compute.itemsize + (0 if in_place else rows * columns * TORCH_TILE_BYTES)
    cast = 0 if compute == head.dtype else columns * hidden.shape[-1] * compute.itemsize
    return hidden.numel() * (3 * hidden.dtype.itemsize + 4) + tile + cast


def _hidden_output(output: Any) -> Tensor:
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden
