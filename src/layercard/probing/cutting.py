"""Cuts a collated batch into smaller ones: by rows, or into its documents without padding and packing's keys.

Offers `halves`, `as_padded` and `one_at_a_time`. Raises `ProbeError` where nobody can tell which images or sounds are a row's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from layercard.errors import ProbeError, one_of
from layercard.probing.documents import IGNORED, Cut, Documents

PACKING_KEYS = (
    "position_ids",
    "seq_idx",
    "cu_seq_lens_q",
    "cu_seq_lens_k",
    "max_length_q",
    "max_length_k",
    "seq_lengths",
)
TARGET_KEYS = ("decoder_input_ids", "decoder_attention_mask", "decoder_inputs_embeds", "decoder_position_ids")
ANSWERS = ("start_positions", "end_positions")
MEDIA = ("pixel_values", "image", "video", "audio", "input_features", "input_values")


def halves(inputs: Mapping[str, Any], documents: Documents) -> list[dict[str, Any]]:
    """Return the batch cut in two by rows; a batch of one row is returned whole."""
    rows = documents.rows
    _refuse_media(inputs, documents)
    cut = (rows + 1) // 2
    return [_rows(inputs, rows, a, b) for a, b in ((0, cut), (cut, rows)) if b > a]


def as_padded(inputs: Mapping[str, Any], documents: Documents) -> Iterator[dict[str, Any]]:
    """Yield each document as a batch of its own with the padding that it has; of packed rows as `one_at_a_time` does."""
    if documents.packed:
        return one_at_a_time(inputs, documents)
    _refuse_media(inputs, documents)
    return (_rows(inputs, documents.rows, cut.row, cut.row + 1) for cut in documents.cuts)


def _rows(inputs: Mapping[str, Any], rows: int, start: int, end: int) -> dict[str, Any]:
    return {k: v[start:end] if _has_rows(v, rows) else v for k, v in inputs.items()}


def _has_rows(value: Any, rows: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == rows


def one_at_a_time(inputs: Mapping[str, Any], documents: Documents) -> Iterator[dict[str, Any]]:
    """Yield each document as a batch of its own, without padding and without packing's keys."""
    _refuse_media(inputs, documents)
    tokens = _tokens(inputs)
    for cut in documents.cuts:
        keeps_padding = documents.labels_by_token and not documents.packed and _labelled_beyond(inputs["labels"], cut)
        place = Cut(cut.row, target_end=cut.target_end) if keeps_padding else cut
        yield {
            name: _part(name, value, place, documents, tokens)
            for name, value in inputs.items()
            if name not in PACKING_KEYS
        }


def _part(name: str, value: Any, cut: Cut, documents: Documents, tokens: torch.Size) -> Any:
    """Return what one key of the batch holds of one document."""
    if not _has_rows(value, documents.rows):
        return value
    row = value[cut.row : cut.row + 1]
    if name in TARGET_KEYS or (name == "labels" and not documents.labels_by_token):
        return row if cut.target_end is None else row[:, : cut.target_end]
    if cut.start is None or cut.end is None:
        return row
    if name in ANSWERS:
        return row - cut.start
    if name == "attention_mask" and documents.packed:  # of packed rows it may number their documents
        return torch.ones(1, cut.end - cut.start, dtype=value.dtype, device=value.device)
    if value.shape[: len(tokens)] == tokens:
        return row.narrow(len(tokens) - 1, cut.start, cut.end - cut.start)
    return row


def _tokens(inputs: Mapping[str, Any]) -> torch.Size:
    """Return (rows, width), or (rows, choices, width), of the source; nothing where it is no sequence of tokens."""
    ids, embedded = inputs.get("input_ids"), inputs.get("inputs_embeds")
    if isinstance(ids, Tensor):
        return ids.shape
    return embedded.shape[:-1] if isinstance(embedded, Tensor) else torch.Size()


def _labelled_beyond(labels: Tensor, cut: Cut) -> bool:
    """Whether a row has labels outside its document, so that they may be no labels of tokens."""
    row = labels[cut.row]
    return bool((row[: cut.start] != IGNORED).any() or (row[cut.end :] != IGNORED).any())


def _refuse_media(inputs: Mapping[str, Any], documents: Documents) -> None:
    media = [name for name in inputs if name.startswith(MEDIA)]
    if media and "input_ids" in inputs and (documents.rows > 1 or documents.packed):
        raise ProbeError(
            f"A probe batch has to be run one example at a time, and which part of {one_of(media)} belongs to which row cannot "
            "be told. Set `probe_batch_size: 1`, or choose layers by depth or by hand."
        )
