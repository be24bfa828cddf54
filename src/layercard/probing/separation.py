"""Whether a model's attention keeps packed documents apart: tried, not assumed.

It depends on the attention kernel and on what the collator passes, so one document's tokens are changed and the
document behind it is watched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from layercard.probing.cutting import PACKING_KEYS
from layercard.probing.documents import Documents

TOLERANCE = 1e-3
NOTE = (
    "attention does not keep packed documents apart here, so a document's loss reads those before it in its row; training "
    "does the same"
)


def attends_across(
    last_layer: nn.Module, run: Callable[[dict[str, Any]], object], batch: Mapping[str, Any], documents: Documents
) -> bool:
    """Return whether a document's last hidden states change with the tokens of the document before it in its row.

    `run` runs the model on a batch. Costs two forward passes over the first two documents that share a row.
    """
    pair = next(
        ((a, b) for a, b in zip(documents.spans, documents.spans[1:], strict=False) if a[0] == b[0] and a[2] == b[1]),
        None,
    )
    if pair is None:
        return False
    (row, start, middle), (_, _, end) = pair
    cut = _cut(batch, documents, row, start, end)
    changed = dict(cut)
    ids = cut["input_ids"].clone()
    ids[:, : middle - start] = ids[:, : middle - start].flip(1).roll(1, 1) ^ 1
    changed["input_ids"] = ids.clamp(max=int(batch["input_ids"].max()))
    seen: list[Tensor] = []
    handle = last_layer.register_forward_hook(
        lambda module, args, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    try:
        with torch.no_grad():
            run(cut)
            run(changed)
    finally:
        handle.remove()
    first, second = (hidden.reshape(-1, hidden.shape[-1])[middle - start :].float() for hidden in seen)
    return bool((first - second).norm() > TOLERANCE * first.norm())


def _cut(batch: Mapping[str, Any], documents: Documents, row: int, start: int, end: int) -> dict[str, Any]:
    """Return one stretch of one row as a batch; of packing's keys only `position_ids` survives."""
    kept: dict[str, Any] = {}
    for name, value in batch.items():
        if name in PACKING_KEYS and name != "position_ids":
            continue
        by_token = (
            isinstance(value, Tensor) and value.dim() >= 2 and value.shape[:2] == (documents.rows, documents.width)
        )
        kept[name] = value[row : row + 1, start:end] if by_token else value
    return kept
