"""`check_card_folder`: whether a folder that a plugin provides holds Layer Cards that the library can use."""

from __future__ import annotations

from pathlib import Path

from layercard.cards.library import Library


def check_card_folder(folder: Path) -> None:
    """Raise `AssertionError` unless `folder` holds Layer Cards, all of them readable and each where its key says.

    A card lies at `<model>/<dataset>.json`, its key. Everything that a file gets wrong is in the message: it is read as
    safely as any other card, and checked against the schema, its own numbers, and what must not be shared.
    """
    library = Library.of([("checked", Path(folder))])
    if library.rejected:
        listed = "\n".join(reason for _, reason in library.rejected)
        raise AssertionError(f"{len(library.rejected)} file(s) in {folder} are no usable Layer Cards:\n{listed}")
    if not library.cards:
        raise AssertionError(f"{folder} holds no Layer Card. Cards lie in it as <model>/<dataset>.json.")
    for card in library.cards:
        place = card.source.removeprefix("checked:")
        if place != f"{card.key}.json":
            raise AssertionError(f"The card at {place} has the key `{card.key}`. Keep it at {card.key}.json.")
