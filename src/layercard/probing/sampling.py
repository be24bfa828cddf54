"""Which tokens CKA and the effective rank look at; decided from token ids alone, so neither batching nor order matters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from layercard.probing.documents import Documents

MOST_SAMPLED_TOKENS = 2048
OFFSETS_TRIED = 16


def cka_offset(batches: Sequence[tuple[Mapping[str, Any], Documents]]) -> int | None:
    """Return the last position, counted back from a document's last token, whose token differs between documents.

    The last token is often the same end-of-sequence token in every example; the first layer's input is constant there and
    CKA undefined. None where none of the last 16 positions differs: the mean over tokens is compared then.
    """
    for offset in range(OFFSETS_TRIED):
        seen = set()
        for batch, documents in batches:
            for row, start, end in documents.spans:
                seen.add(int(batch["input_ids"][row, max(end - 1 - offset, start)]))
        if len(seen) > 1:
            return offset
    return None


def share_to_sample(batches: Sequence[tuple[Mapping[str, Any], Documents]]) -> float:
    """Return which share of all tokens makes at most `MOST_SAMPLED_TOKENS`."""
    tokens = sum(documents.tokens for _, documents in batches)
    return 1.0 if tokens <= MOST_SAMPLED_TOKENS else 0.9 * MOST_SAMPLED_TOKENS / tokens


def sampled_tokens(batch: Mapping[str, Any], documents: Documents, share: float, seed: int) -> Tensor | None:
    """Return (rows, width) bool marking the sampled tokens, by a hash of token id and position in its document."""
    if share <= 0.0:
        return None
    if share >= 1.0:
        return documents.mask
    place = documents.mask.long()
    for row, start, end in documents.spans:
        place[row, start:end] = place[row, start:end].cumsum(0)
    mixed = (batch["input_ids"] * 2_654_435_761 + place * 40_503 + seed * 97) % 2**31
    mixed = (mixed * 1_103_515_245 + 12_345) % 2**31
    return documents.mask & (mixed < share * 2**31)
