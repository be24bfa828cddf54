"""Sketches of example gradients: short vectors whose inner products are those of the gradients, on average over signs.

A gradient of p numbers is padded, brought into a random order, gets random signs, and is added up in `SKETCH_WIDTH` = s columns.
With independent signs E⟨sketch(x), sketch(y)⟩ = ⟨x, y⟩, and since two places share a column with probability at most 1/s, the
variance is at most (‖x‖²‖y‖² + ⟨x, y⟩²)/s: the standard error of an inner product is under √2/32 of ‖x‖‖y‖, and 1/32 of it
where the two are orthogonal. This is feature hashing (Weinberger et al. 2009, lemma 2) with columns of equal size, or
the count sketch of Charikar et al. 2002 with one row. It costs a reading of the gradient, whatever its width is.

Each module has an order and signs of its own, so that the sketches of a layer's modules may be added up. They depend on the
module's place and size alone: every rank, batch and repetition has the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

SKETCH_WIDTH = 1024
_PLACES = 1 << 20
"""More than a layer has target modules."""


def sketch(gradients: Tensor, place: tuple[int, int], width: int = SKETCH_WIDTH) -> Tensor:
    """Return (D, width) float32, the sketch of each of `gradients` (D, out, r), of the module at `place` (layer, column)."""
    padded = torch.nn.functional.pad(gradients.flatten(1), (0, -gradients[0].numel() % width))
    size, device = padded.shape[1], padded.device
    generator = torch.Generator(device).manual_seed(place[0] * _PLACES + place[1])
    order = torch.randperm(
        size, generator=generator, device=device
    )  # padding too: small modules must not share columns
    signs = torch.randint(2, (size,), generator=generator, device=device, dtype=torch.int8) * 2 - 1
    return (padded[:, order] * signs).view(len(padded), -1, width).sum(1)
