"""The Layer Cards that one run may consult: `open_shelf` reads the library.

The library never fails a run, unless the user named a card: then what keeps that card from being read stops the run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from layercard.cards.card import LayerCard, slug
from layercard.cards.fingerprint import SIZES, public_id, size_of
from layercard.cards.library import Library
from layercard.cards.query import may_be_same_model
from layercard.registry import CardFolders
from layercard.settings import PlacementSettings

NOT_OF_THIS_MODEL = "no measured Layer Card is of this model"


@dataclass(frozen=True)
class Shelf:
    """The cards that one run may consult."""

    cards: tuple[LayerCard, ...]
    notes: tuple[str, ...] = ()
    """What a person should know of the library: the cards that were refused."""
    named: bool = False
    """Whether it is the one card that the user named."""


def open_shelf(settings: PlacementSettings, folders: CardFolders) -> Shelf:
    """Return the cards that `settings` let in; raise `CardError` where the card that they name cannot be used."""
    try:
        library = Library.open(folders)
    except OSError as error:  # a folder that may not be read
        return Shelf((), (f"The library of Layer Cards cannot be read: {error}",))
    if settings.cards is not None:
        return Shelf(library.named(settings.cards), named=True)
    if not library.rejected:
        return Shelf(library.cards)
    listed = "; ".join(reason for _, reason in library.rejected)
    return Shelf(library.cards, (f"Layer Cards that were left out ({len(library.rejected)}): {listed}",))


def may_speak(shelf: Shelf, config: Any, num_layers: int) -> tuple[LayerCard, ...]:
    """Return the cards that may be of a model with this configuration, or the named one; no weights are read."""
    if shelf.named:
        return shelf.cards
    text = config.get_text_config()
    sizes = {name: value for name in SIZES if (value := size_of(text, name)) is not None}
    model_id = public_id(config.name_or_path)
    return tuple(card for card in shelf.cards if may_be_same_model(card, num_layers, sizes, model_id))


def none_of(shelf: Shelf, config: Any) -> str:
    """Return that no card is of this model, with the published ones that people can read."""
    name = slug(public_id(config.name_or_path))
    published = [card.key for card in shelf.cards if not card.is_measured and card.key.startswith(f"{name}/")]
    readable = f"; published ones, for people to read: {', '.join(published)}" if published else ""
    return f"{NOT_OF_THIS_MODEL}{readable}"
