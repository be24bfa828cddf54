"""Keys cached hidden states by content: token ids, positions and segments of one example, without its
padding.

An example is a row, or one document of a packed row where attention was proved to separate documents. Rows
whose attention mask is not one of padding have no key.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from layercard.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Example:
    """One example of a batch: its row, the columns of its tokens in ascending order, and its content key."""

    row: int
    columns: NDArray[np.int64]
    key: bytes

    @property
    def span(self) -> slice | NDArray[np.int64]:
        """The columns, as a slice where they are contiguous."""
        first, last = int(self.columns[0]), int(self.columns[-1])
        return slice(first, last + 1) if last - first + 1 == len(self.columns) else self.columns


@dataclass(frozen=True)
class TokenInputs:
    """What the backbone is called with: token ids (batch, tokens) and, where given, the rest in the same shape."""

    input_ids: Tensor
    attention_mask: Tensor | None = None
    position_ids: Tensor | None = None
    token_type_ids: Tensor | None = None

    def restarts(self) -> bool:
        """Whether some row's positions restart: documents packed end to end."""
        return any(len(self._documents(row)) > 1 for row in range(len(self.input_ids)))

    def examples(self, *, split_documents: bool, shift_positions: bool, context: bytes) -> list[Example]:
        """Return the examples of the batch.

        `split_documents`: a document of a packed row is an example of its own. `shift_positions`: only
        differences of positions matter to the model, so that the same tokens after more padding are the same
        example. `context` is what else the hidden states depend on.
        """
        found = []
        for row in range(len(self.input_ids)):
            parts = self._documents(row) if split_documents else [self._columns(row)]
            found += [self._example(row, part, shift_positions, context) for part in parts if len(part)]
        return found

    def _example(self, row: int, columns: NDArray[np.int64], shift: bool, context: bytes) -> Example:
        positions = self._positions(row)[columns]
        digest = hashlib.blake2b(context, digest_size=16)
        digest.update(_row(self.input_ids, row)[columns].tobytes())
        digest.update((positions - positions[0] if shift else positions).tobytes())
        if self.token_type_ids is not None:
            digest.update(_row(self.token_type_ids, row)[columns].tobytes())
        return Example(row, columns, digest.digest())

    def _columns(self, row: int) -> NDArray[np.int64]:
        width = self.input_ids.shape[1]
        if self.attention_mask is None:
            return np.arange(width)
        return np.flatnonzero(_row(self.attention_mask, row))

    def _positions(self, row: int) -> NDArray[np.int64]:
        if self.position_ids is None:
            return np.arange(self.input_ids.shape[1])
        return _row(self.position_ids, row if len(self.position_ids) > 1 else 0)

    def _documents(self, row: int) -> list[NDArray[np.int64]]:
        columns = self._columns(row)
        if self.position_ids is None:
            return [columns]
        starts = np.flatnonzero(self._positions(row)[columns] == 0)
        return [part for part in np.split(columns, starts) if len(part)]


def _row(values: Tensor, row: int) -> NDArray[np.int64]:
    if values.dim() != 2:
        raise DataError(f"Expected inputs of shape (batch, tokens), found {tuple(values.shape)}.")
    return values[row].cpu().numpy().astype(np.int64)
