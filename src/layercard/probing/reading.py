"""Reads a collated batch: its documents, and how many label terms the loss of each has.

Offers `read_documents`. What the labels are is `labels.py`'s answer; here they are counted, and those that a document
alone would not have are masked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from layercard.errors import DataError, one_of
from layercard.probing.documents import IGNORED, Cut, Documents, Stream
from layercard.probing.labels import Reading

MAIN_INPUTS = ("input_ids", "inputs_embeds", "input_features", "input_values", "pixel_values")


@dataclass(frozen=True)
class _Labelled:
    """Stretches of source positions (rows where there are none) with their label terms, before any is left out."""

    spans: tuple[tuple[int, int, int], ...]
    terms: list[int]
    packed: bool = False
    by_token: bool = False


def read_documents(
    inputs: Mapping[str, Any], reading: Reading, stream: Stream = "source"
) -> tuple[dict[str, Any], Documents]:
    """Return the batch as the probe runs it, and its documents on `stream`.

    Labels of padding are masked, and where labels are shifted that of a document's first token: it would be predicted from
    another document or from padding. Documents without any label are left out. Raises `DataError` where the batch lacks what
    `reading` needs.
    """
    batch = dict(inputs)
    rows = _main(batch).shape[0]
    source = _source_mask(batch)
    found = _labelled(batch, source, reading, rows)
    kept = [i for i, n in enumerate(found.terms) if n > 0]
    terms = torch.tensor([found.terms[i] for i in kept], dtype=torch.float64)
    target = _target_mask(batch, reading, source) if stream == "target" else None
    spans = [found.spans[i] for i in kept]
    documents = Documents(
        mask=torch.zeros(0),
        spans=tuple(spans),
        terms=terms,
        packed=found.packed,
        cuts=tuple(_cut(batch, span, source, reading) for span in spans),
        beside=None if source is None or stream != "target" else source.flatten(1),
        choices=source.shape[1] if source is not None and source.dim() == 3 else None,
        labels_by_token=found.by_token,
    )
    stack = {"source": None if source is None else source.flatten(1), "target": target}.get(stream)
    if stack is None:
        whole = tuple((row, 0, 1) for row, _, _ in spans)
        mask = torch.ones(rows, 1, dtype=torch.bool, device=_main(batch).device)
        return batch, replace(documents, mask=mask, spans=whole, is_open=True)
    if stream == "target":
        documents = replace(documents, spans=tuple(_extent(stack, row) for row, _, _ in spans))
    return batch, replace(documents, mask=_counted(stack, documents.spans), ids=_ids(batch, stack, stream))


def _main(batch: Mapping[str, Any]) -> Tensor:
    """Return the tensor whose first axis is the batch's rows."""
    for name in MAIN_INPUTS:
        if isinstance(batch.get(name), Tensor):
            found: Tensor = batch[name]
            return found
    raise DataError(
        f"A batch holds {sorted(batch)} and none of {one_of(MAIN_INPUTS)}. The probe reads one of these, collated as the "
        "trainer does; other inputs cannot be told apart by example. Choose layers by depth or by hand."
    )


def _source_mask(batch: Mapping[str, Any]) -> Tensor | None:
    """(rows, width) bool, or (rows, choices, width), True at tokens; None where the input is no sequence of tokens."""
    like = batch.get("input_ids")
    if not isinstance(like, Tensor):
        embedded = batch.get("inputs_embeds")
        if not isinstance(embedded, Tensor):
            return None
        like = embedded[..., 0]
    attention = batch.get("attention_mask")
    if isinstance(attention, Tensor) and attention.shape == like.shape:
        return attention != 0
    return torch.ones_like(like, dtype=torch.bool)


def _labelled(batch: dict[str, Any], source: Tensor | None, reading: Reading, rows: int) -> _Labelled:
    if reading.kind == "token":
        return _by_token(batch, source, reading)
    if reading.kind == "unknown":
        return _unknown(batch, source, rows, reading.two_streams)
    whole = tuple(_extent(source.flatten(1), row) if source is not None else (row, 0, 1) for row in range(rows))
    if reading.kind == "answer":
        return _Labelled(whole, _answers(batch, source, rows))
    labels = _labels(batch)
    if reading.kind == "target":
        if labels.dim() != 2 or labels.shape[0] != rows:
            raise _misshapen(labels, rows, "one label a token of its target")
        return _Labelled(whole, [int(n) for n in (labels != IGNORED).sum(1).tolist()])
    if labels.dim() == 0 or labels.shape[0] != rows:
        raise _misshapen(labels, rows, "one label, or one vector of labels, a row")
    return _Labelled(whole, [int(used) for used in reading.by_row(labels).tolist()])


def _labels(batch: Mapping[str, Any]) -> Tensor:
    labels = batch.get("labels")
    if not isinstance(labels, Tensor):
        raise DataError(
            f"A batch holds {sorted(batch)} and no tensor `labels`. The probe needs examples with the labels that the model's "
            "own loss reads, as the trainer's collator gives them. Without them, choose layers by depth or by hand."
        )
    return labels


def _misshapen(labels: Tensor, rows: int, wanted: str) -> DataError:
    return DataError(
        f"`labels` of a batch of {rows} rows has shape {tuple(labels.shape)}; the model's loss reads {wanted}. Give labels of "
        "that kind, or a model whose head is made for these."
    )


def _by_token(batch: dict[str, Any], source: Tensor | None, reading: Reading) -> _Labelled:
    name = "shift_labels" if reading.shifted and isinstance(batch.get("shift_labels"), Tensor) else "labels"
    labels = batch[name] if name == "shift_labels" else _labels(batch)
    if source is None or source.dim() != 2 or labels.shape != source.shape:
        raise _misshapen(labels, len(labels), "one label a token of `input_ids`")
    starts = _starts(batch, source)
    unread = starts if reading.shifted and name == "labels" else torch.zeros_like(starts)
    labels = batch[name] = labels.masked_fill(~source | unread, IGNORED)
    spans = tuple(_spans(starts, source))
    terms = [int((labels[row, start:end] != IGNORED).sum()) for row, start, end in spans]
    return _Labelled(spans, terms, packed=bool((starts.sum(1) > 1).any()), by_token=True)


def _unknown(batch: dict[str, Any], source: Tensor | None, rows: int, two_streams: bool) -> _Labelled:
    """Every stretch counts, but one whose labels are all masked."""
    starts = None
    if source is None:
        spans: tuple[tuple[int, int, int], ...] = tuple((row, 0, 1) for row in range(rows))
    elif source.dim() == 3:
        spans = tuple(_extent(source.flatten(1), row) for row in range(rows))
    else:
        starts = _starts(batch, source)
        spans = tuple(_spans(starts, source))
    packed = starts is not None and bool((starts.sum(1) > 1).any())
    labels = batch.get("labels")
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dim() == 0 or len(labels) != rows:
        return _Labelled(spans, [1] * len(spans), packed)
    by_token = source is not None and labels.shape == source.shape and not two_streams
    taught = labels != IGNORED
    parts = [taught[row, start:end] if by_token else taught[row] for row, start, end in spans]
    return _Labelled(spans, [int(part.any()) for part in parts], packed, by_token)


def _answers(batch: dict[str, Any], source: Tensor | None, rows: int) -> list[int]:
    """Mask answers that lie outside the row, in whole, since their loss alone is undefined; return 1 for each other."""
    names = ("start_positions", "end_positions")
    if not all(isinstance(batch.get(name), Tensor) for name in names) or source is None:
        raise DataError(
            f"A batch holds {sorted(batch)}, and a question answering model reads `input_ids`, `start_positions` and "
            "`end_positions`. Give them in the training set's rows."
        )
    width = source.shape[1]
    places = torch.stack([batch[name].reshape(rows) for name in names])
    inside = (places < width).all(0)
    for name, place in zip(names, places, strict=True):
        batch[name] = place.masked_fill(~inside, width)  # what the loss ignores
    return [int(used) for used in inside.tolist()]


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


def _extent(mask: Tensor, row: int) -> tuple[int, int, int]:
    """Return (row, first token, one behind the last)."""
    places = mask[row].nonzero().flatten()
    return (row, int(places[0]), int(places[-1]) + 1) if len(places) else (row, 0, 0)


def _target_mask(batch: Mapping[str, Any], reading: Reading, source: Tensor | None) -> Tensor | None:
    """(rows, target width) bool: up to the last label, where the decoder was given no mask; nothing reads what is beyond.

    Heads that label rows let their decoder read the input again.
    """
    given, labels = batch.get("decoder_attention_mask"), batch.get("labels")
    if isinstance(given, Tensor) and given.dim() == 2:
        return given != 0
    of_target = reading.kind == "target" or reading.two_streams
    if of_target and isinstance(labels, Tensor) and labels.dim() == 2 and not labels.is_floating_point():
        return (labels != IGNORED).to(torch.int64).flip(1).cumsum(1).flip(1) > 0
    written = batch.get("decoder_input_ids")
    return torch.ones_like(written, dtype=torch.bool) if isinstance(written, Tensor) else source


def _counted(mask: Tensor, spans: tuple[tuple[int, int, int], ...]) -> Tensor:
    counted = torch.zeros_like(mask)
    for row, start, end in spans:
        counted[row, start:end] = mask[row, start:end]
    return counted


def _ids(batch: Mapping[str, Any], stack: Tensor, stream: Stream) -> Tensor | None:
    names = ("decoder_input_ids", "labels", "input_ids") if stream == "target" else ("input_ids",)
    for name in names:
        found = batch.get(name)
        if isinstance(found, Tensor) and found.flatten(1).shape == stack.shape:
            return found.flatten(1)
    return None


def _cut(batch: Mapping[str, Any], span: tuple[int, int, int], source: Tensor | None, reading: Reading) -> Cut:
    row, start, end = span
    target = _target_mask(batch, reading, None) if reading.kind == "target" else None
    target_end = None if target is None else _extent(target, row)[2]
    if source is None:
        return Cut(row, target_end=target_end)
    if source.dim() == 3:
        _, start, end = _extent(source[row].any(0, keepdim=True), 0)
    return Cut(row, start, end, target_end)
