"""Hooks of a probe that only look: at attention blocks, and at what enters and leaves a layer.

`Trace` registers them and says when they record; what they see goes to its sums.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from layercard.errors import ModelError
from layercard.probing.sampling import at_offset

if TYPE_CHECKING:
    from layercard.probing.trace import Trace


class NotPerExample(Exception):  # noqa: N818 -- a signal to run one example at a time, not an error
    """A target read an input that is not laid out by example (shared relative positions, routed tokens)."""


def first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the tensor that a module reads: hidden states, positional or by name."""
    x = args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values())))
    return x[0] if isinstance(x, tuple) else x


def further_states(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the other hidden states that a layer is given, (rows, positions, features): what its cross-attention reads."""
    given = [*args[1:], *kwargs.values()] if args else [v for k, v in kwargs.items() if k != "hidden_states"]
    return [x for x in given if isinstance(x, Tensor) and x.dim() == 3 and x.is_floating_point()]


def first_output(output: Any) -> Tensor:
    """Return the tensor that a module returns, the first of several."""
    return output[0] if isinstance(output, tuple) else output


class AttentionHook:
    """Forward hook of a layer's attention block: the norm of what enters and leaves it, token by token."""

    def __init__(self, trace: Trace, layer: int) -> None:
        self.trace, self.layer = trace, layer

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Add the norms of the block's input and output."""
        if not self.trace.recording:
            return
        for side, x in enumerate((first_input(args, kwargs), first_output(output))):
            norms = torch.linalg.vector_norm(self.trace.tokens_of(x), dim=-1, dtype=torch.float32)
            norms = norms.masked_fill(~self.trace.documents.mask, 0.0)
            self.trace.sums.attention[side, self.layer] += norms.sum()


class StreamHook:
    """Forward pre-hook of a layer: how wide the stream is that the layers read, and what cross-attention reads beside."""

    def __init__(self, trace: Trace, layer: int) -> None:
        self.trace, self.layer = trace, layer

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Tell the trace what the layer is about to read."""
        if not self.trace.recording:
            return
        if self.layer == 0:
            self.trace.open(first_input(args, kwargs))
        self.trace.beside = further_states(args, kwargs)


class LayerHook:
    """Forward hook of a whole layer: one vector an example at its input and output, and sampled input tokens."""

    def __init__(self, trace: Trace, layer: int) -> None:
        self.trace, self.layer = trace, layer

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Keep what the layer read and returned, where a scorer asked for it."""
        trace = self.trace
        if not trace.recording:
            return
        entering, leaving = first_input(args, kwargs).detach(), first_output(output).detach()
        if trace.wants("representations"):
            trace.sums.inputs[self.layer] = self._vectors(entering)
            trace.sums.outputs[self.layer] = self._vectors(leaving)
        if trace.wants("covariance") and trace.sampled is not None:
            trace.sums.samples[self.layer] = trace.tokens_of(entering)[trace.sampled].float().cpu()

    def _vectors(self, x: Tensor) -> Tensor:
        """Return (D, d): the token at the chosen position of each document, or the mean over its tokens."""
        rows, offset, documents = self.trace.tokens_of(x), self.trace.offset, self.trace.documents
        places = [(i, row) for i, (row, _, _) in enumerate(documents.spans)]
        if offset is None:
            return torch.stack([rows[row, documents.positions(i)].float().mean(0) for i, row in places]).cpu()
        return torch.stack([rows[row, at_offset(documents, i, offset)].float() for i, row in places]).cpu()


def attention_block(layer: nn.Module) -> nn.Module:
    """Return the attention block of a layer: the outermost module named or classed as attention."""
    for name, module in layer.named_modules():
        if name and ("attn" in name.rsplit(".", 1)[-1] or "attention" in type(module).__name__.lower()):
            return module
    raise ModelError(
        f"No attention block was found in {type(layer).__name__}: none of its modules is named `…attn` or is an "
        "…Attention. Use a `score` that does not read attention, such as `resnorm`."
    )
