"""Puts the hidden states of a batch together: from the cache, from states at an earlier entry, and by running the prefix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from layercard.prefix.calls import BackboneCall
from layercard.prefix.earlier import EarlierStates
from layercard.prefix.keys import Example
from layercard.prefix.skipping import PrefixSwitch
from layercard.prefix.store import ActivationStore


@dataclass(frozen=True)
class Served:
    """Hidden states of a batch at the entry (batch, tokens, width), and which examples they came from where."""

    hidden: Tensor
    found: list[Example]
    """From the cache."""
    rolled: list[Example]
    """From states at an earlier entry, through the layers between."""
    missing: list[Example]
    """From the bottom up: neither was held, or not of all that share the row."""


def serve(
    call: BackboneCall,
    examples: Sequence[Example],
    switch: PrefixSwitch,
    store: ActivationStore,
    earlier: EarlierStates,
) -> Served:
    """Return the hidden states of a batch of which `examples` are the examples, and keep in `store` what is new."""
    held = {example.key: store.get(example.key) for example in examples}
    below = {key: earlier.get(key) for key, hidden in held.items() if hidden is None}
    fresh_rows = sorted({e.row for e in examples if held[e.key] is None and below[e.key] is None})
    found = [example for example in examples if held[example.key] is not None]
    unknown = [example for example in examples if held[example.key] is None]
    missing = [example for example in unknown if example.row in fresh_rows]
    rolled = [example for example in unknown if example.row not in fresh_rows]
    fresh = switch.compute(call.rows(fresh_rows)) if fresh_rows else None
    known = _rolled(call, rolled, below, switch)
    known |= {key: hidden for key, hidden in held.items() if hidden is not None}
    hidden = _spread(call, fresh, fresh_rows, like=next(iter(known.values()), None))
    for example in missing:
        earlier.move(example.key, hidden[example.row, example.span], store)
    for example in rolled:
        earlier.move(example.key, known[example.key], store)
    for example in (*found, *rolled):
        hidden[example.row, example.span] = known[example.key].to(hidden.device)
    return Served(hidden, found, rolled, missing)


def _rolled(
    call: BackboneCall,
    examples: Sequence[Example],
    below: Mapping[bytes, tuple[int, Tensor] | None],
    switch: PrefixSwitch,
) -> dict[bytes, Tensor]:
    """Return the states at the entry of `examples`, each (tokens, width), from those held at lower layers."""
    starts: dict[int, list[tuple[Example, Tensor]]] = {}
    for example in examples:
        layer, hidden = below[example.key] or (0, torch.empty(0))
        starts.setdefault(layer, []).append((example, hidden))
    return {key: hidden for layer, held in starts.items() for key, hidden in _run_from(call, layer, held, switch)}


def _run_from(
    call: BackboneCall, layer: int, held: Sequence[tuple[Example, Tensor]], switch: PrefixSwitch
) -> list[tuple[bytes, Tensor]]:
    """Run the layers from `layer` to the entry on the rows of `held` alone.

    Other documents of these rows are zero there: that no document sees another has been proved where a row has several.
    """
    rows = sorted({example.row for example, _ in held})
    ids = call.named["input_ids"]
    first = held[0][1]
    entering = torch.zeros(len(rows), ids.shape[1], first.shape[-1], dtype=first.dtype, device=ids.device)
    for example, hidden in held:
        entering[rows.index(example.row), example.span] = hidden.to(ids.device)
    reached = switch.compute(call.rows(rows), (layer, entering))
    return [(example.key, reached[rows.index(example.row), example.span]) for example, _ in held]


def _spread(call: BackboneCall, fresh: Tensor | None, rows: list[int], like: Tensor | None) -> Tensor:
    """Hidden states of the whole batch: those of `rows`, the others zero."""
    ids = call.named["input_ids"]
    if fresh is not None and len(rows) == len(ids):
        return fresh
    like = fresh if fresh is not None else like
    if like is None:
        raise RuntimeError("Neither computed nor cached hidden states were found.")
    hidden = torch.zeros(*ids.shape, like.shape[-1], dtype=like.dtype, device=ids.device)
    if fresh is not None:
        hidden[rows] = fresh
    return hidden
