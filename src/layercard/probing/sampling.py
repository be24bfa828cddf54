"""Which tokens CKA and the effective rank look at; decided from token ids alone, so neither batching nor order matters.

Where positions have no ids (sound, images), their places in the example decide.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from layercard.probing.documents import Documents

MOST_SAMPLED_TOKENS = 2048
OFFSETS_TRIED = 16


def cka_offset(read: Sequence[Documents]) -> int | None:
    """Return the last position, counted back from a document's last token, whose token differs between documents.

    The last token is often the same end-of-sequence token in every example; the first layer's input is constant there and
    CKA undefined. None where none of the last 16 positions differs, or there are no ids: the mean over tokens is compared
    then.
    """
    for offset in range(OFFSETS_TRIED):
        seen = set()
        for documents in read:
            if documents.ids is None:
                return None
            for document, (row, _, _) in enumerate(documents.spans):
                seen.add(int(documents.ids[row, at_offset(documents, document, offset)]))
        if len(seen) > 1:
            return offset
    return None


def at_offset(documents: Documents, document: int, offset: int) -> int:
    """Return the position `offset` tokens before a document's last one, its first where it is shorter."""
    positions = documents.positions(document)
    return int(positions[max(len(positions) - 1 - offset, 0)])


def share_to_sample(read: Sequence[Documents]) -> float:
    """Return which share of all tokens makes at most `MOST_SAMPLED_TOKENS`; all of a stream of unknown width."""
    tokens = sum(documents.tokens for documents in read)
    return 1.0 if tokens <= MOST_SAMPLED_TOKENS else 0.9 * MOST_SAMPLED_TOKENS / tokens


def sampled_tokens(documents: Documents, share: float, seed: int) -> Tensor | None:
    """Return (rows, width) bool marking the sampled tokens, by a hash of token id and position in its document."""
    if share <= 0.0:
        return None
    if share >= 1.0:
        return documents.mask
    place = documents.mask.long()
    for row, start, end in documents.spans:
        place[row, start:end] = place[row, start:end].cumsum(0)
    ids = torch.zeros_like(place) if documents.ids is None else documents.ids
    mixed = (ids * 2_654_435_761 + place * 40_503 + seed * 97) % 2**31
    mixed = (mixed * 1_103_515_245 + 12_345) % 2**31
    return documents.mask & (mixed < share * 2**31)
