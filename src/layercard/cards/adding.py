"""Puts Layer Cards into the user's own folder, so that the library holds one card a key."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from layercard.cards.card import LayerCard
from layercard.cards.library import USER, Library, default_user_dir, save_card, user_path
from layercard.cards.schema import check_card
from layercard.errors import CardError
from layercard.registry import CardFolders


def add_cards(
    cards: Sequence[LayerCard],
    folders: CardFolders,
    *,
    replace: bool = False,
    user_dir: Path | None = None,
) -> list[Path]:
    """Write `cards` into the user's folder and return where each lies; write none where one cannot be taken.

    `folders` is what `layercard.plugins.card_folders` returns.

    Raises `CardError` where another card of that key says something else: one of a plugin always, one of the user's own
    unless `replace` is given.
    """
    for card in cards:
        check_card(card.document, card.source)
    folder = user_dir or default_user_dir()
    provided, own = Library.of(folders), Library.of([(USER, folder)])
    targets = [user_path(card, folder) for card in cards]
    for index, (card, target) in enumerate(zip(cards, targets, strict=True)):
        _refuse_other(card, [*provided.cards, *cards[:index]], "Give the dataset another id")
        elsewhere = [known for known in own.cards if folder / known.source.removeprefix(f"{USER}:") != target]
        _refuse_other(card, elsewhere, "Remove that file")
        there = own.get(card.key)
        if target.exists() and not replace and (there is None or there.document != card.document):
            raise CardError(
                f"{card.source}: your library has another card for `{card.key}` at {target}. `--replace` replaces it."
            )
    for card, target in zip(cards, targets, strict=True):
        save_card(card, target)
    return targets


def _refuse_other(card: LayerCard, known: Sequence[LayerCard], remedy: str) -> None:
    for other in known:
        if other.key == card.key and other.document != card.document:
            raise CardError(
                f"{card.source}: {other.source} is another card for `{card.key}`, and a key has one card. {remedy}."
            )
