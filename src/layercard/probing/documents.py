"""Which positions of a collated batch belong to which document.

An example is a document: a row of a padded batch, or a stretch of a packed row between two places where
`position_ids` (or `seq_idx`) restart. Positions are those of the stream that a stack of layers reads: an encoder's
source, a decoder's target, or a stream whose width only the forward pass tells (sound, images). Offers `Documents`,
which `reading.py` makes of a batch and `cutting.py` cuts a batch into. Knows nothing of models and labels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, TypeAlias

from torch import Tensor

IGNORED = -100

Stream: TypeAlias = Literal["source", "target", "apart"]
"""source    the positions of the model's own input: the only stream of most models, an encoder's of two
target    the positions of an encoder-decoder's target
apart     a tower beside a language model, or anything else whose positions the batch does not tell"""


@dataclass(frozen=True)
class Cut:
    """Where a document lies in a batch: its row, its source positions, and how far its target goes; None: all of it."""

    row: int
    start: int | None = None
    end: int | None = None
    target_end: int | None = None


@dataclass(frozen=True)
class Documents:
    """The documents of one batch of `rows` rows and `width` positions of the stream that the layers read."""

    mask: Tensor
    """(rows, width) bool, True at tokens of a document; padding never counts."""
    spans: tuple[tuple[int, int, int], ...]
    """(row, start, end) of each document."""
    terms: Tensor
    """(documents,) float64, the label terms in each document's own loss, never 0."""
    packed: bool = False
    cuts: tuple[Cut, ...] = ()
    """Where each document lies in the batch."""
    ids: Tensor | None = None
    """(rows, width) the tokens' ids; None where the stream has none."""
    beside: Tensor | None = None
    """(rows, source width) bool, the tokens that cross-attention reads; None where there are none, or all count."""
    choices: int | None = None
    """Texts in a row, one after another, where a row has several."""
    is_open: bool = False
    """Whether `width` is not known before the layers run: all of their positions count then."""
    labels_by_token: bool = False
    """Whether `labels` has one entry a source position."""

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

    @cached_property
    def tokens(self) -> int:
        """The number of tokens in all documents."""
        return int(self.mask.sum())

    def positions(self, document: int) -> Tensor:
        """Return the positions of a document's tokens in its row, ascending."""
        row, start, end = self.spans[document]
        return self.mask[row, start:end].nonzero().flatten() + start

    def opened(self, width: int) -> Documents:
        """Return the documents of an open stream that turned out to have `width` positions."""
        spans = tuple((row, 0, width) for row, _, _ in self.spans)
        return replace(self, mask=self.mask[:, :1].expand(-1, width), spans=spans, is_open=False)
