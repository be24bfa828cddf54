"""Whether a predicted peak fits a device, and which single change of the run would make it fit.

Knows no model: what a changed run holds is asked of whoever traces it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch

from layercard.cost.peak import ModelBytes, Peak, Training, predict_peak
from layercard.cost.traced import RunShape
from layercard.sizes import usable

Verdict: TypeAlias = Literal["yes", "tight", "no"]
SHORTEST = 256
"""Tokens under which no shorter rows are advised."""
Changes: TypeAlias = Iterator[tuple[str, "Setup"]]


@dataclass(frozen=True)
class Setup:
    """One way to run the training."""

    rows: int
    """Examples of a step on one device."""
    tokens: int
    """Of the longest row."""
    shape: RunShape
    training: Training
    takes_tiles: bool = True
    """Whether the model's loss can be computed from tiles of the logits."""


@dataclass(frozen=True)
class Way:
    """A change that makes a run fit, and its predicted peak in bytes."""

    change: str
    peak: int


Traced: TypeAlias = Callable[[Setup], ModelBytes]


def verdict(peak: int, device: int) -> Verdict:
    """Return whether a predicted peak fits a device of so many bytes; `tight` where less than a tenth of it is left."""
    if peak > device:
        return "no"
    return "tight" if peak > usable(device) else "yes"


def peak_of(setup: Setup, layers: Sequence[int], traced: Traced) -> Peak:
    """Return the predicted peak of a run that adapts `layers`."""
    return predict_peak(traced(setup), layers, setup.training)


def ways_to_fit(setup: Setup, layers: Sequence[int], device: int, traced: Traced, every: Sequence[int]) -> list[Way]:
    """Return what alone makes the run fit with room, each change as small as does; where nothing does, all together.

    `every` are the layers that may be adapted, ascending. An empty list: nothing here helps.
    """
    found = [*_placed_higher(setup, layers, device, traced, every)]
    for group in (_checkpointing(setup), _tiles(setup), _rows(setup), _tokens(setup), _weights(setup)):
        found += _first_that_fits(group, layers, device, traced)
    return found or _first_that_fits(_together(setup), layers, device, traced)


def _first_that_fits(group: Changes, layers: Sequence[int], device: int, traced: Traced) -> list[Way]:
    """Return the smallest change of a group that does, found without asking about others where the largest does not."""
    ordered = list(group)
    if not ordered or not _fits(ordered[-1][1], layers, device, traced):
        return []
    change, changed = next(pair for pair in ordered if _fits(pair[1], layers, device, traced))
    return [Way(change, peak_of(changed, layers, traced).total)]


def _fits(setup: Setup, layers: Sequence[int], device: int, traced: Traced) -> bool:
    return verdict(peak_of(setup, layers, traced).total, device) == "yes"


def _placed_higher(
    setup: Setup, layers: Sequence[int], device: int, traced: Traced, every: Sequence[int]
) -> Iterator[Way]:
    for count in range(len(every) - 1, 0, -1):
        highest = every[-count:]
        if highest[0] > min(layers) or count < len(layers):
            peak = peak_of(setup, highest, traced).total
            if verdict(peak, device) == "yes":
                yield Way(f"adapters in the last {count} layers alone", peak)
                return


def _checkpointing(setup: Setup) -> Changes:
    if not setup.training.checkpointing:
        yield "gradient checkpointing", replace(setup, training=replace(setup.training, checkpointing=True))


def _tiles(setup: Setup) -> Changes:
    if setup.takes_tiles and not setup.shape.tiled_head:
        yield "a loss that never holds all logits", replace(setup, shape=replace(setup.shape, tiled_head=True))


def _rows(setup: Setup) -> Changes:
    rows = setup.rows // 2
    while rows:
        yield f"batch size {rows}", replace(setup, rows=rows)
        rows //= 2


def _tokens(setup: Setup) -> Changes:
    tokens = setup.tokens // 2
    while tokens >= SHORTEST:
        yield f"rows of at most {tokens} tokens", replace(setup, tokens=tokens)
        tokens //= 2


def _weights(setup: Setup) -> Changes:
    if setup.shape.bits is None:
        yield "8-bit weights", replace(setup, shape=packed_shape(setup.shape, 8))
    if setup.shape.bits != 4:
        yield "4-bit weights", replace(setup, shape=packed_shape(setup.shape, 4))


def _together(setup: Setup) -> Changes:
    """Everything that costs no example of the batch, and smaller and smaller batches with it."""
    shape = packed_shape(replace(setup.shape, tiled_head=setup.takes_tiles), 4)
    saving = replace(setup, shape=shape, training=replace(setup.training, checkpointing=True))
    said = [change for group in (_checkpointing(setup), _tiles(setup)) for change, _ in group]
    said += [] if setup.shape.bits == 4 else ["4-bit weights"]
    if said:
        yield _listed(said), saving
    for change, changed in _rows(saving):
        yield _listed([change, *said]), changed


def _listed(changes: Sequence[str]) -> str:
    *others, last = changes
    return f"{', '.join(others)} and {last}" if others else last


def packed_shape(shape: RunShape, bits: Literal[4, 8]) -> RunShape:
    """Return the run with packed weights; TRL then trains adapters in bfloat16."""
    return replace(shape, bits=bits, adapter_dtype=torch.bfloat16)
