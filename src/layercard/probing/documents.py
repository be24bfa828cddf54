"""Which positions of a collated batch belong to which document.

An example is a document: a row of a padded batch, or a stretch of a packed row between two places where
`position_ids` (or `seq_idx`) restart. Offers `Documents`, `read_documents` and ways to cut a batch into smaller ones.
Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from layercard.errors import DataError

IGNORED = -100
PACKING_KEYS = (
    "position_ids",
    "seq_idx",
    "cu_seq_lens_q",
    "cu_seq_lens_k",
    "max_length_q",
    "max_length_k",
    "seq_lengths",
)


@dataclass(frozen=True)
class Documents:
    """The documents of one batch of `rows` rows and `width` positions."""

    mask: Tensor
    """(rows, width) bool, True at tokens of a document; padding never counts."""
    spans: tuple[tuple[int, int, int], ...]
    """(row, start, end) of each document."""
    terms: Tensor
    """(documents,) float64, the label terms in each document's own loss; 0 where all its labels are masked."""
    packed: bool

    def __len__(self) -> int:
        return len(self.spans)

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.mask.shape[0]

    @property
    def width(self) -> int:
        """The number of positions in a row."""
        return self.mask.shape[1]

    @cached_property
    def is_full(self) -> bool:
        """Whether every position belongs to a document."""
        return bool(self.mask.all())

    @property
    def tokens(self) -> int:
        """The number of tokens in all documents."""
        return int(self.mask.sum())


def read_documents(inputs: Mapping[str, Any], *, shifted: bool) -> tuple[dict[str, Any], Documents]:
    """Return the batch as the probe runs it, and its documents.

    `shifted`: position t predicts the label at t + 1, as in causal language models. The label of a document's first
    token is masked then: it would be predicted from another document or from padding. Documents without any label are
    left out. Raises `DataError` where there is no `input_ids` or no `labels`.
    """
    batch = dict(inputs)
    for name in ("input_ids", "labels"):
        if not isinstance(batch.get(name), Tensor):
            raise DataError(
                f"A batch holds {sorted(batch)} and no tensor `{name}`. The probe needs tokenized examples with labels, as "
                "the trainer's own collator gives them."
            )
    mask = _token_mask(batch)
    starts = _starts(batch, mask)
    packed = bool((starts.sum(1) > 1).any())
    per_token = batch["labels"].dim() == 2 and batch["labels"].shape == mask.shape
    if per_token:
        batch["labels"] = batch["labels"].masked_fill(
            ~mask | (starts if shifted else torch.zeros_like(starts)), IGNORED
        )
    spans = tuple(_spans(starts, mask))
    terms = _terms(batch["labels"], spans, per_token)
    kept = [i for i, n in enumerate(terms.tolist()) if n > 0]
    counted = torch.zeros_like(mask)
    for i in kept:
        row, start, end = spans[i]
        counted[row, start:end] = mask[row, start:end]
    documents = Documents(counted, tuple(spans[i] for i in kept), terms[kept], packed)
    return batch, documents


def _token_mask(batch: Mapping[str, Any]) -> Tensor:
    attention = batch.get("attention_mask")
    if isinstance(attention, Tensor) and attention.dim() == 2:
        return attention != 0
    return torch.ones_like(batch["input_ids"], dtype=torch.bool)


def _starts(batch: Mapping[str, Any], mask: Tensor) -> Tensor:
    """(rows, width) bool, True at each document's first token."""
    first = mask & (mask.cumsum(1) == 1)
    if isinstance(batch.get("seq_idx"), Tensor):
        index = batch["seq_idx"]
        return mask & (first | torch.cat([torch.ones_like(index[:, :1]), index.diff(dim=1)], 1).ne(0))
    positions = batch.get("position_ids")
    if isinstance(positions, Tensor) and positions.shape == mask.shape:
        return mask & (first | (positions == 0))
    return first


def _spans(starts: Tensor, mask: Tensor) -> Iterator[tuple[int, int, int]]:
    for row in range(starts.shape[0]):
        begins = starts[row].nonzero().flatten().tolist()
        last = int(mask[row].nonzero().max()) + 1 if begins else 0
        for begin, end in zip(begins, [*begins[1:], last], strict=True):
            yield row, begin, end


def _terms(labels: Tensor, spans: tuple[tuple[int, int, int], ...], per_token: bool) -> Tensor:
    if per_token:
        counts = [int((labels[row, start:end] != IGNORED).sum()) for row, start, end in spans]
    else:
        used = [labels[row] for row, _, _ in spans]
        counts = [int(label.numel() > 0 and bool((label != IGNORED).all())) for label in used]
    return torch.tensor(counts, dtype=torch.float64)


def halves(inputs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the batch cut in two by rows; a batch of one row is returned whole."""
    rows = inputs["input_ids"].shape[0]
    cut = (rows + 1) // 2
    return [_rows(inputs, a, b) for a, b in ((0, cut), (cut, rows)) if b > a]


def _rows(inputs: Mapping[str, Any], start: int, end: int) -> dict[str, Any]:
    rows = inputs["input_ids"].shape[0]
    return {
        k: v[start:end] if isinstance(v, Tensor) and v.dim() and v.shape[0] == rows else v for k, v in inputs.items()
    }


def one_at_a_time(inputs: Mapping[str, Any], documents: Documents) -> Iterator[dict[str, Any]]:
    """Yield each document as a batch of its own, without padding and without packing's keys."""
    rows, width = documents.rows, documents.width
    for row, start, end in documents.spans:
        single: dict[str, Any] = {}
        for name, value in inputs.items():
            if name in PACKING_KEYS:
                continue
            if not isinstance(value, Tensor) or value.dim() == 0 or value.shape[0] != rows:
                single[name] = value
            elif value.dim() >= 2 and value.shape[1] == width:
                single[name] = value[row : row + 1, start:end]
            else:
                single[name] = value[row : row + 1]
        if "attention_mask" in single:
            single["attention_mask"] = torch.ones_like(single["input_ids"])
        yield single
