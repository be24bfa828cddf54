"""`Trace`: the context manager that owns the torch hooks of a probe.

For a target y = W x with LoRA factors A (r × d) and B = 0, ∂L/∂B of one example is Σ_t δ_t (A x_t)ᵀ with δ = ∂L/∂y, LoRA
scale divided out, and does not depend on any adapter. So a forward hook keeps z = A x, r numbers a token; a hook on y
receives δ; their product is squared, summed, perhaps sketched, and dropped. Offers `Trace`; knows nothing of losses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Self

import torch
from torch import Tensor, nn

from layercard.anatomy.layers import LayerStack
from layercard.anatomy.targets import TargetModule
from layercard.probing.accumulators import BatchSums
from layercard.probing.documents import Documents
from layercard.probing.observers import (
    AttentionHook,
    LayerHook,
    NotPerExample,
    StreamHook,
    attention_block,
)
from layercard.probing.statistics import BACKWARD, Need
from layercard.probing.target_hook import Places, Reading, TargetHook
from layercard.ranks import gathered


class Trace:
    """Hooks on targets, attention blocks and layers while the `with` block lasts; `sums` receives what they see."""

    def __init__(
        self,
        stack: LayerStack,
        targets: Sequence[TargetModule],
        projections: Sequence[Tensor],
        names: Sequence[str],
        needs: frozenset[Need],
        *,
        apart: bool = False,
    ) -> None:
        self.layers, self.apart = stack.layers, apart
        self._needs, self.targets = needs, tuple(targets)
        self._hooks = ExitStack()
        columns = {name: i for i, name in enumerate(names)}
        self._targets = [
            TargetHook(self, target, columns[target.name], projection)
            for target, projection in zip(targets, projections, strict=True)
        ]
        self.backward = bool(needs & BACKWARD)
        self.recording = False
        self.fired = self.half = False
        self._crossed: Places | None = None

    def __enter__(self) -> Self:
        with ExitStack() as hooks:
            if self.backward or "energy" in self._needs:
                for hook in self._targets:
                    _register(hooks, hook.target.module, hook)
            read = {hook.target.layer for hook in self._targets}  # hybrid models have no attention in the others
            for layer, module in enumerate(self.layers):
                hooks.callback(module.register_forward_pre_hook(StreamHook(self, layer), with_kwargs=True).remove)
                if "attention_norms" in self._needs and layer in read:
                    _register(hooks, attention_block(module), AttentionHook(self, layer))
                if self._needs & {"representations", "covariance"}:
                    _register(hooks, module, LayerHook(self, layer))
            self._hooks = hooks.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._hooks.close()

    def begin(
        self,
        documents: Documents,
        sums: BatchSums,
        offset: int | None,
        sample: Callable[[Documents], Tensor | None],
    ) -> None:
        """Record the forward pass that follows.

        `offset` is the position that CKA compares, counted from a document's last token, None for the mean over tokens;
        `sample` returns (rows, width) bool marking the tokens that the effective rank keeps.
        """
        self.sums, self.documents, self.offset, self._sample = sums, documents, offset, sample
        self.sampled = None if documents.is_open else sample(documents)
        self.beside: list[Tensor] = []
        self._places, self._crossed = Places(documents.mask), None
        self._reading: Reading | None = None
        for hook in self._targets:
            hook.begin()
        self.recording = True

    def open(self, x: Tensor) -> None:
        """Learn from what the first layer reads how wide the stream is, where the batch does not tell."""
        documents = self.documents
        if not documents.is_open:
            return
        if documents.rows == 1:
            self.documents = documents.opened(x.numel() // x.shape[-1])
        elif x.dim() == 3 and x.shape[0] == documents.rows and not self.apart:
            self.documents = documents.opened(x.shape[1])
        else:
            raise NotPerExample
        self._places = Places(self.documents.mask)
        self.sampled = self._sample(self.documents)

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

    def ran_and_reached(self) -> tuple[frozenset[tuple[int, str]], frozenset[tuple[int, str]]]:
        """Return the (layer, name) of the targets that ran, and of those that a gradient reached, on any rank."""
        found = [
            {(h.target.layer, h.target.name) for h in self._targets if h.ran},
            {(h.target.layer, h.target.name) for h in self._targets if h.reached},
        ]
        everywhere = gathered(found)
        ran, reached = (frozenset().union(*(part[i] for part in everywhere)) for i in (0, 1))
        return ran, reached

    def wants(self, need: Need) -> bool:
        """Whether a scorer in use asked for `need`."""
        return need in self._needs

    def tokens_of(self, x: Tensor) -> Tensor:
        """Return `x` as (rows, width, features), position by position of the stream; raise `NotPerExample` otherwise."""
        rows = self.by_row(x.detach())
        if rows is None or rows.shape[1] != self.documents.width:
            raise NotPerExample
        return rows

    def by_row(self, x: Tensor) -> Tensor | None:
        """Return `x` as (rows, positions, features), or None where its rows are not the batch's."""
        documents = self.documents
        rows, width = documents.rows, documents.width
        if x.shape[:-1] == (rows, width):
            return x
        if documents.choices is not None and x.shape[0] == rows * documents.choices:
            return x.reshape(rows, -1, x.shape[-1])
        if x.dim() == 2 and x.shape[0] == rows * width:
            return x.view(rows, width, -1)
        if x.shape[0] == rows and x.dim() == 2 and not documents.packed:
            return x.unsqueeze(1)
        if rows == 1 and len(documents) == 1:
            return x.reshape(1, -1, x.shape[-1])
        return None

    def read(self, x: Tensor) -> Reading:
        """Return the input `x` of a target by rows; modules that read one tensor (q, k and v) share the work.

        Raises `NotPerExample` where its rows are not the batch's.
        """
        if self._reading is None or self._reading.x is not x:
            self._reading = self._crossing(x) or self._along(x)
        return self._reading

    def _along(self, x: Tensor) -> Reading:
        rows = self.by_row(x.detach())
        if rows is None:
            raise NotPerExample
        places = self._places if rows.shape[1] == self.documents.width else None
        return Reading(x, rows, places, is_tokens=places is not None or x.dim() == 2)

    def _crossing(self, x: Tensor) -> Reading | None:
        """Return what cross-attention reads of the other stream; None where `x` is not that."""
        if not any(
            x is given or (x.shape == given.shape and x.data_ptr() == given.data_ptr()) for given in self.beside
        ):
            return None
        mask = self.documents.beside
        if x.shape[0] != self.documents.rows or (mask is not None and x.shape[:-1] != mask.shape):
            return None
        if self._crossed is None or self._crossed.mask.shape != x.shape[:-1]:
            kept = torch.zeros(x.shape[:-1], dtype=torch.bool, device=x.device)
            for row, _, _ in self.documents.spans:
                kept[row] = True if mask is None else mask[row]
            self._crossed = Places(kept)
        return Reading(x, x.detach(), self._crossed, is_tokens=True)


def _register(hooks: ExitStack, module: nn.Module, hook: Any) -> None:
    hooks.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
