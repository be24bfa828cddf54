"""Whether the tokens of a padded row read its padding: tried, not assumed.

Models without a mask of padding (FNet), or that mix positions beside their attention (ConvBERT, Nyströmformer), do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from layercard.probing.cutting import MEDIA, as_padded, one_at_a_time
from layercard.probing.documents import Documents

TOLERANCE = 1e-4
"""Relative, in float32, which rounds at 1e-7; in half precision it is eight of its roundings."""
NOTE = (
    "examples were run one at a time without padding, since tokens read the padding of their row here; training on padded "
    "batches reads it"
)


def reads_padding(
    last_layer: nn.Module, run: Callable[[dict[str, Any]], object], batch: Mapping[str, Any], documents: Documents
) -> bool:
    """Return whether the last hidden states of a row padded on the right change where its padding is cut off.

    `run` runs the model on a batch. Costs two forward passes over the row with the most padding.
    """
    media = any(name.startswith(MEDIA) for name in batch)  # nobody can tell which of them are a row's
    if documents.packed or documents.is_full or documents.choices is not None or "input_ids" not in batch or media:
        return False
    padding = (~documents.mask).sum(1)
    number, (row, start, end) = max(enumerate(documents.spans), key=lambda found: int(padding[found[1][0]]))
    if start > 0 or int(padding[row]) == 0:
        return False
    padded, alone = list(as_padded(batch, documents))[number], list(one_at_a_time(batch, documents))[number]
    seen: list[Tensor] = []
    handle = last_layer.register_forward_hook(
        lambda module, args, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    try:
        with torch.no_grad():
            run(padded)
            run(alone)
    finally:
        handle.remove()
    if len(seen) != 2:  # looped models call their last layer more than once
        return False
    first, second = (hidden.reshape(-1, hidden.shape[-1])[:end].float() for hidden in seen)
    bound = max(TOLERANCE, float(torch.finfo(seen[0].dtype).eps) * 8)
    return bool((first - second).norm() > bound * second.norm())
