"""`Trace`: the context manager that owns the torch hooks of a probe.

For a target y = W x with LoRA factors A (r × d) and B = 0, ∂L/∂B of one example is Σ_t δ_t (A x_t)ᵀ with δ = ∂L/∂y, LoRA
scale divided out, and does not depend on any adapter. So a forward hook keeps z = A x, r numbers a token; a hook on y
receives δ; their product is squared, summed and dropped. Offers `Trace`; knows nothing of losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn

from layercard.anatomy.layers import LayerStack
from layercard.anatomy.targets import TargetModule
from layercard.probing.accumulators import BatchSums
from layercard.probing.documents import Documents
from layercard.probing.observers import AttentionHook, LayerHook, NotPerExample, attention_block, first_input
from layercard.probing.statistics import Need


class Trace:
    """Hooks on targets, attention blocks and layers while the `with` block lasts; `sums` receives what they see."""

    def __init__(
        self,
        stack: LayerStack,
        targets: Sequence[TargetModule],
        projections: Sequence[Tensor],
        names: Sequence[str],
        needs: frozenset[Need],
    ) -> None:
        self.layers = stack.layers
        self._needs = needs
        self._hooks = ExitStack()
        columns = {name: i for i, name in enumerate(names)}
        self._targets = [
            _TargetHook(self, target, columns[target.name], projection)
            for target, projection in zip(targets, projections, strict=True)
        ]
        self.backward = bool(needs & {"gradients", "mean_gradient"})
        self.recording = False
        self.fired = self.half = False

    def __enter__(self) -> Self:
        with ExitStack() as hooks:
            if self.backward or "energy" in self._needs:
                for hook in self._targets:
                    _register(hooks, hook.target.module, hook)
            read = {hook.target.layer for hook in self._targets}  # hybrid models have no attention in the others
            for layer, module in enumerate(self.layers):
                if "attention_norms" in self._needs and layer in read:
                    _register(hooks, attention_block(module), AttentionHook(self, layer))
                if self._needs & {"representations", "covariance"}:
                    _register(hooks, module, LayerHook(self, layer))
            self._hooks = hooks.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._hooks.close()

    def begin(self, documents: Documents, sums: BatchSums, offset: int | None, sampled: Tensor | None) -> None:
        """Record the forward pass that follows.

        `offset` is the position that CKA compares, counted from a document's last token, None for the mean over tokens;
        `sampled` (rows, width) bool marks the tokens that the effective rank keeps.
        """
        self.sums, self.documents, self.offset, self.sampled = sums, documents, offset, sampled
        self._reading: _Reading | None = None
        for hook in self._targets:
            hook.begin()
        self.recording = True

    def end_of_forward(self, weights: Tensor) -> None:
        """Stop recording: what fires from here on is recomputation under gradient checkpointing.

        `weights` (D,) turn a gradient of the batch's loss into that of each document's own.
        """
        self.recording = False
        self._reading = None
        self.weights = weights

    def end_of_backward(self) -> None:
        """Add the gradients of modules that were called several times."""
        for hook in self._targets:
            hook.end()

    def wants(self, need: Need) -> bool:
        """Whether a scorer in use asked for `need`."""
        return need in self._needs

    def by_row(self, x: Tensor) -> Tensor | None:
        """Return `x` as (rows, positions, features), or None where its rows are not the batch's."""
        rows, width = self.documents.rows, self.documents.width
        if x.shape[:-1] == (rows, width):
            return x
        if x.dim() == 2 and x.shape[0] == rows * width:
            return x.view(rows, width, -1)
        if x.shape[0] == rows and x.dim() == 2 and not self.documents.packed:
            return x.unsqueeze(1)
        if rows == 1 and len(self.documents) == 1:
            return x.reshape(1, -1, x.shape[-1])
        return None

    def reads_tokens(self, x: Tensor) -> bool:
        """Whether (rows, positions, features) `x` holds the batch's tokens, position by position."""
        return x.shape[1] == self.documents.width

    def read(self, x: Tensor) -> _Reading:
        """Return the input `x` of a target by rows; modules that read one tensor (q, k and v) share the work.

        Raises `NotPerExample` where its rows are not the batch's.
        """
        if self._reading is None or self._reading.x is not x:
            rows = self.by_row(x.detach())
            if rows is None:
                raise NotPerExample
            self._reading = _Reading(x, rows, self.documents)
        return self._reading


class _Reading:
    """What target modules read: x by rows, its energy and its float32 copy, each made once."""

    def __init__(self, x: Tensor, rows: Tensor, documents: Documents) -> None:
        self.x, self.rows = x, rows
        self._documents = documents
        self.by_position = rows.shape[1] == documents.width
        self.is_tokens = self.by_position or x.dim() == 2

    @cached_property
    def energy(self) -> tuple[Tensor, float]:
        """Σ‖x_t‖² over tokens and their number."""
        squares = torch.linalg.vector_norm(self.rows, dim=-1, dtype=torch.float32).square()
        if not self.by_position:
            return squares.sum(), float(squares.numel())
        return squares.masked_fill(~self._documents.mask, 0.0).sum(), float(self._documents.tokens)

    @cached_property
    def float32(self) -> Tensor:
        """(rows, positions, features)."""
        return self.rows.to(torch.float32)


def _register(hooks: ExitStack, module: nn.Module, hook: Any) -> None:
    hooks.callback(module.register_forward_hook(hook, with_kwargs=True).remove)


class _TargetHook:
    """Forward hook of one target module. A module may be called several times; its gradients add up before the norm."""

    def __init__(self, trace: Trace, target: TargetModule, column: int, projection: Tensor) -> None:
        self.trace, self.target = trace, target
        self.where = (target.layer, column)
        self.projection = projection  # (r, in_features) float32
        self.calls = 0
        self.total: Tensor | None = None

    def begin(self) -> None:
        """Forget the last batch."""
        self.calls, self.total = 0, None

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        backward = self.trace.backward
        if backward and not output.requires_grad:
            output = output.detach().requires_grad_()
        if self.trace.recording:
            self._record(first_input(args, kwargs), output, backward)
        return output if backward else None

    def _record(self, x: Tensor, output: Tensor, backward: bool) -> None:
        trace = self.trace
        reading = trace.read(x)
        self.calls += 1
        trace.fired = True
        trace.half = trace.half or output.dtype is torch.float16
        # a table of relative positions that the module reads in a later call is no token of the example
        if trace.wants("energy") and self.calls == 1 and reading.is_tokens:
            total, count = reading.energy
            trace.sums.energy[self.where] += total / self.target.in_features
            trace.sums.energy_tokens[self.where] += count
        if backward:
            with torch.no_grad(), torch.autocast(x.device.type, enabled=False):  # the host may be under autocast
                z = reading.float32 @ self.projection.T  # (rows, positions, r)
            output.register_hook(lambda delta: self._receive(delta.detach(), z))

    def _receive(self, delta: Tensor, z: Tensor) -> None:
        rows = self.trace.by_row(delta)
        if rows is None:
            raise NotPerExample
        gradients = _per_document(rows.to(torch.float32), z, self.trace.documents)  # (D, out, r)
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
        if self.trace.wants("mean_gradient"):
            weights = self.trace.weights.to(gradients)
            self.trace.sums.gradients[self.where] = torch.einsum("dkr,d->kr", gradients, weights).cpu()


def _per_document(delta: Tensor, z: Tensor, documents: Documents) -> Tensor:
    """Return Σ_t δ_t z_tᵀ of each document, (D, out, r); `delta` (rows, positions, out), `z` (rows, positions, r)."""
    if documents.packed:
        parts = [delta[row, start:end].T @ z[row, start:end] for row, start, end in documents.spans]
        return torch.stack(parts)
    if z.shape[1] == documents.width and not documents.is_full:
        padding = ~documents.mask.unsqueeze(-1)
        delta, z = delta.masked_fill(padding, 0.0), z.masked_fill(padding, 0.0)  # both: 0 · NaN is NaN
    kept = [row for row, _, _ in documents.spans]
    if len(kept) < documents.rows:
        delta, z = delta[kept], z[kept]
    return torch.bmm(delta.transpose(1, 2), z)
