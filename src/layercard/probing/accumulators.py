"""Sums over batches from which `LayerStatistics` is finished.

`BatchSums` holds what hooks add during one batch, float32 on the device; `RunSums` takes whole batches only, in float64
on the CPU, so that a batch that fails leaves no trace. Memory does not grow with the number of batches, except for the
one vector an example and layer that CKA needs, the sketch an example and layer that set gain needs, and the sampled tokens
of the effective rank.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from layercard.probing.documents import Documents
from layercard.ranks import gathered


@dataclass
class BatchSums:
    """What one batch added. L layers, M target names, D documents."""

    squares: Tensor
    """(L, M, D) float32, ‖G_m‖² of each document, in units of the batch's own loss."""
    energy: Tensor
    """(L, M) float32, Σ over tokens of ‖x‖²/d."""
    energy_tokens: Tensor
    """(L, M) float32, how many tokens that sum covers."""
    attention: Tensor
    """(2, L) float32, Σ over tokens of the norm of the attention block's input and output."""
    sketches: Tensor
    """(L, D, S) float32, sketches of ∂L/∂B in units of the batch's own loss; S = 0 where no scorer asked for them."""
    gradients: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    """(out, r) float32 Σ over documents of ∂L/∂B, each for its own loss."""
    inputs: dict[int, Tensor] = field(default_factory=dict)
    """By layer: (D, d) float32 on the CPU, the representation that enters it."""
    outputs: dict[int, Tensor] = field(default_factory=dict)
    """By layer: (D, d) float32 on the CPU, the representation that leaves it."""
    samples: dict[int, Tensor] = field(default_factory=dict)
    """By layer: (tokens, d) float32 on the CPU, sampled inputs of the layer."""

    @classmethod
    def empty(
        cls, layers: int, targets: int, documents: int, device: torch.device, *, sketch_width: int = 0
    ) -> BatchSums:
        """Return zeros."""
        return cls(
            squares=torch.zeros(layers, targets, documents, device=device),
            energy=torch.zeros(layers, targets, device=device),
            energy_tokens=torch.zeros(layers, targets, device=device),
            attention=torch.zeros(2, layers, device=device),
            sketches=torch.zeros(layers, documents, sketch_width, device=device),
        )


class RunSums:
    """Sums over all batches so far."""

    def __init__(self, layers: int, targets: int) -> None:
        self.examples = 0
        self.tokens = 0
        self.gradient_norm = torch.zeros(layers, dtype=torch.float64)
        self.module_norm = torch.zeros(layers, targets, dtype=torch.float64)
        self.energy = torch.zeros(layers, targets, dtype=torch.float64)
        self.energy_tokens = torch.zeros(layers, targets, dtype=torch.float64)
        self.attention = torch.zeros(2, layers, dtype=torch.float64)
        self.sketches: list[NDArray[np.float32]] = []
        self.gradients: dict[tuple[int, int], Tensor] = {}
        self.inputs: dict[int, list[NDArray[np.float32]]] = {}
        self.outputs: dict[int, list[NDArray[np.float32]]] = {}
        self.samples: dict[int, list[NDArray[np.float32]]] = {}

    def add(self, batch: BatchSums, documents: Documents, weights: Tensor) -> None:
        """Take a whole batch; `weights` (D,) turn a gradient of the batch's loss into that of a document's own."""
        squares = batch.squares.double().cpu()
        self.examples += len(documents)
        self.tokens += documents.tokens
        self.gradient_norm += (squares.sum(1).sqrt() * weights).sum(-1)
        self.module_norm += (squares.sqrt() * weights).sum(-1)
        self.energy += batch.energy.double().cpu()
        self.energy_tokens += batch.energy_tokens.double().cpu()
        self.attention += batch.attention.double().cpu()
        if batch.sketches.shape[-1]:
            self.sketches.append((batch.sketches.cpu() * weights.cpu()[:, None]).float().numpy())
        for key, gradient in batch.gradients.items():
            self.gradients[key] = self.gradients[key] + gradient if key in self.gradients else gradient
        for mine, theirs in (
            (self.inputs, batch.inputs),
            (self.outputs, batch.outputs),
            (self.samples, batch.samples),
        ):
            for layer, rows in theirs.items():
                mine.setdefault(layer, []).append(rows.numpy())

    def emptied(self) -> RunSums:
        """Return sums of the same layers and targets over nothing."""
        return RunSums(*self.module_norm.shape)

    def reduce(self, device: torch.device) -> None:
        """Sum over the ranks of the default process group, so that every rank holds the same numbers.

        What reads examples is done by then, on every rank (`together`): from here on nothing fails on one of them alone.
        """
        counts = torch.tensor([self.examples, self.tokens], dtype=torch.float64)
        fields = (
            counts,
            self.gradient_norm,
            self.module_norm,
            self.energy,
            self.energy_tokens,
            self.attention,
        )
        for total in fields:
            total.copy_(_all_reduced(total, device))
        self.examples, self.tokens = (int(n) for n in counts.tolist())
        for place in sorted(self._everywhere(self.gradients)):
            self.gradients[place] = _all_reduced(self.gradients[place], device)
        self.sketches = [rows for part in gathered(self.sketches) for rows in part]
        for store in (self.inputs, self.outputs, self.samples):
            parts = gathered(dict(store))
            for layer in {layer for part in parts for layer in part}:
                store[layer] = [rows for part in parts for rows in part.get(layer, [])]

    def _everywhere(self, mine: dict[tuple[int, int], Tensor]) -> set[tuple[int, int]]:
        """The keys that any rank holds; a rank without examples joins with zeros."""
        for part in gathered({key: tuple(value.shape) for key, value in mine.items()}):
            for key, shape in part.items():
                mine.setdefault(key, torch.zeros(shape))
        return set(mine)


def _all_reduced(total: Tensor, device: torch.device) -> Tensor:
    import torch.distributed as dist

    moved = total.to(device if dist.get_backend() == "nccl" else "cpu").clone()
    dist.all_reduce(moved)
    return moved.to(total.device)
