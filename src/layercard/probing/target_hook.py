"""The hook of one target module: its example gradients ∂L/∂B = Σ_t δ_t (A x_t)ᵀ and the energy of what it reads.

Offers `TargetHook`, which `trace.py` registers, and `Reading` of a module's input by rows.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from layercard.anatomy.targets import TargetModule
from layercard.errors import ModelError
from layercard.probing.documents import Documents
from layercard.probing.observers import NotPerExample, first_input
from layercard.probing.sketch import sketch

if TYPE_CHECKING:
    from layercard.probing.trace import Trace


class Places:
    """Positions of a stream: which of them are tokens."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask
        """(rows, positions) bool."""

    @cached_property
    def padding(self) -> Tensor | None:
        """(rows, positions, 1) bool, True at what is no token; None where all are."""
        return None if bool(self.mask.all()) else ~self.mask.unsqueeze(-1)

    @cached_property
    def tokens(self) -> float:
        """How many tokens there are."""
        return float(self.mask.sum())


class Reading:
    """What target modules read: x by rows, its energy and its float32 copy, each made once."""

    def __init__(self, x: Tensor, rows: Tensor, places: Places | None, *, is_tokens: bool) -> None:
        self.x, self.rows, self.is_tokens = x, rows, is_tokens
        self.places = places
        """None where x is not laid out by position."""

    @cached_property
    def energy(self) -> tuple[Tensor, float]:
        """Σ‖x_t‖² over tokens and their number."""
        squares = torch.linalg.vector_norm(self.rows, dim=-1, dtype=torch.float32).square()
        if self.places is None:
            return squares.sum(), float(squares.numel())
        return squares.masked_fill(~self.places.mask, 0.0).sum(), self.places.tokens

    @cached_property
    def float32(self) -> Tensor:
        """(rows, positions, features)."""
        return self.rows.to(torch.float32)


class _Root(torch.autograd.Function):
    """Begins a graph at a tensor, as an adapter's sum does: unlike a leaf it may be changed in place by what follows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, root: Tensor) -> Tensor:
        """Return `x` itself, which requires a gradient from here on because `root` does."""
        ctx.mark_dirty(x)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None]:
        """End backpropagation."""
        return None, None


class TargetHook:
    """Forward hook of one target module. A module may be called several times; its gradients add up before the norm."""

    def __init__(self, trace: Trace, target: TargetModule, column: int, projection: Tensor) -> None:
        self.trace, self.target = trace, target
        self.where = (target.layer, column)
        self.projection = projection  # (r, in_features) float32
        self.calls = 0
        self.ran = self.reached = False
        self.total: Tensor | None = None

    def begin(self) -> None:
        """Forget the last batch."""
        self.calls, self.total = 0, None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor | None:
        """Keep A x of the forward pass under way, and ask for δ."""
        if not isinstance(output, Tensor):
            raise ModelError(
                f"`{self.target.name}` ({type(module).__name__}) returns a {type(output).__name__}, and the probe reads modules "
                "that return one tensor. Leave it out of `target_modules`, or choose layers by depth or by hand."
            )
        backward = (
            self.trace.backward and torch.is_grad_enabled()
        )  # early rounds of looped models are run without a graph
        if backward and not output.requires_grad:
            output = _Root.apply(output.detach(), torch.zeros((), requires_grad=True))
        elif backward and output._is_view() and not isinstance(module, Conv1D):
            output = output.clone()  # a view that is changed in place (Longformer) loses its hooks
        if self.trace.recording:
            self._record(first_input(args, kwargs), output, backward)
        return output if backward else None

    def _record(self, x: Tensor, output: Tensor, backward: bool) -> None:
        trace = self.trace
        reading = trace.read(x)
        self.calls += 1
        trace.fired = self.ran = True
        trace.half = trace.half or output.dtype is torch.float16
        # a table of relative positions that the module reads in a later call is no token of the example
        if trace.wants("energy") and self.calls == 1 and reading.is_tokens:
            total, count = reading.energy
            trace.sums.energy[self.where] += total / self.target.in_features
            trace.sums.energy_tokens[self.where] += count
        if backward:
            with torch.no_grad(), torch.autocast(x.device.type, enabled=False):  # the host may be under autocast
                z = reading.float32 @ self.projection.T  # (rows, positions, r)
            padding = None if reading.places is None else reading.places.padding
            output.register_hook(lambda delta: self._receive(delta.detach(), z, padding))

    def _receive(self, delta: Tensor, z: Tensor, padding: Tensor | None) -> None:
        self.reached = True
        if delta.numel() // delta.shape[-1] != z.shape[0] * z.shape[1]:
            raise NotPerExample
        rows = delta.reshape(*z.shape[:2], -1).to(torch.float32)
        gradients = _per_document(rows, z, self.trace.documents, padding)  # (D, out, r)
        if self.calls == 1:
            self._add(gradients)
        else:
            self.total = gradients if self.total is None else self.total + gradients

    def end(self) -> None:
        """Add what several calls summed to."""
        if self.total is not None:
            self._add(self.total)
            self.total = None

    def _add(self, gradients: Tensor) -> None:
        self.trace.sums.squares[self.where] = gradients.square().sum((1, 2))
        if self.trace.wants("gradient_gram"):
            self.trace.sums.sketches[self.where[0]] += sketch(gradients, self.where)
        if self.trace.wants("mean_gradient"):
            weights = self.trace.weights.to(gradients)
            self.trace.sums.gradients[self.where] = torch.einsum("dkr,d->kr", gradients, weights).cpu()


def _per_document(delta: Tensor, z: Tensor, documents: Documents, padding: Tensor | None) -> Tensor:
    """Return Σ_t δ_t z_tᵀ of each document, (D, out, r); `delta` (rows, positions, out), `z` (rows, positions, r)."""
    if documents.packed:
        parts = [delta[row, start:end].T @ z[row, start:end] for row, start, end in documents.spans]
        return torch.stack(parts)
    if padding is not None:
        delta, z = delta.masked_fill(padding, 0.0), z.masked_fill(padding, 0.0)  # both: 0 · NaN is NaN
    kept = [row for row, _, _ in documents.spans]
    if len(kept) < documents.rows:
        delta, z = delta[kept], z[kept]
    return torch.bmm(delta.transpose(1, 2), z)
