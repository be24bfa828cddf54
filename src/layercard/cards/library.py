"""`Library`: every Layer Card that can be found, and by name each one that was refused.

Cards lie in folders as `<model>/<dataset>.json`: the one shipped with layercard, those of plugins that answer
`provide_cards`, and the user's own. One card a key: two that say the same count once, two that disagree are both
refused. What a card must hold is the schema's business; whether it fits a model and data, that of `transfer.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from layercard.cards.card import LayerCard
from layercard.cards.reading import card_files, read_card
from layercard.cards.writing import save_card as save_card
from layercard.errors import CardError, nearest
from layercard.registry import CardFolders

USER = "user"
"""What the user's own folder is called in a card's `source`; a plugin's folder goes by the plugin's name."""


@dataclass(frozen=True)
class Library:
    """Cards in the order of their keys; a file that could not be used stands in `rejected` with the reason."""

    cards: tuple[LayerCard, ...] = ()
    rejected: tuple[tuple[str, str], ...] = ()
    """(source, reason): `user:model/dataset.json` and one line that begins with it."""
    refused_keys: dict[str, str] = field(default_factory=dict)
    """The reason by the key that a refused card has, or by where its file lies."""

    @classmethod
    def open(cls, folders: CardFolders, *, user_dir: Path | None = None) -> Library:
        """Read the cards of every plugin, layercard's own among them, and those in `user_dir`.

        `folders` is what `layercard.plugins.card_folders` returns; `user_dir` defaults to `default_user_dir()`. Refuses single
        cards, never all.
        """
        return cls.of([*folders, (USER, user_dir or default_user_dir())])

    @classmethod
    def of(cls, folders: Iterable[tuple[str, Path]]) -> Library:
        """Read the cards in these folders, each given with the name of its owner; a folder that is missing is empty."""
        cards: list[LayerCard] = []
        rejected: list[tuple[str, str]] = []
        refused: dict[str, str] = {}
        for owner, folder in folders:
            for path in card_files(folder) if folder.is_dir() else ():
                inside = path.relative_to(folder).as_posix()
                source = f"{owner}:{inside}"
                try:
                    cards.append(read_card(path, folder=folder, source=source))
                except CardError as error:
                    rejected.append((source, str(error)))
                    refused[inside.removesuffix(".json")] = str(error)
        kept, disagreeing = _one_a_key(cards)
        for card, reason in disagreeing:
            rejected.append((card.source, reason))
            refused[card.key] = reason
        return cls(kept, tuple(rejected), refused)

    def get(self, key: str) -> LayerCard | None:
        """Return the card `<model slug>/<dataset slug>`, or None."""
        return next((card for card in self.cards if card.key == key), None)

    def named(self, *names: str) -> tuple[LayerCard, ...]:
        """Return the cards that a user named, by key or by path; raise `CardError` where one cannot be used."""
        return tuple(self._named(name) for name in names)

    def _named(self, name: str) -> LayerCard:
        found = self.get(name)
        if found is not None:
            return found
        if name in self.refused_keys:
            raise CardError(f"The Layer Card `{name}` cannot be used: {self.refused_keys[name]}")
        if name.endswith(".json") or Path(name).is_file():
            return read_card(Path(name), source=name)
        hint = nearest(name, [card.key for card in self.cards])
        raise CardError(
            f"There is no Layer Card `{name}` in the library.{hint} See `layercard cards list`, or give a JSON file."
        )


def _one_a_key(cards: Iterable[LayerCard]) -> tuple[tuple[LayerCard, ...], list[tuple[LayerCard, str]]]:
    """Cards by key, and those that share a key and disagree, each with the reason."""
    by_key: dict[str, list[LayerCard]] = {}
    for card in cards:
        by_key.setdefault(card.key, []).append(card)
    kept, disagreeing = [], []
    for key, twins in sorted(by_key.items()):
        if all(twin.document == twins[0].document for twin in twins):
            kept.append(twins[0])
            continue
        named = " and ".join(twin.source for twin in twins)
        reason = f"{named}: two cards for `{key}` that disagree. Remove one, or give the other dataset another id."
        disagreeing += [(twin, reason) for twin in twins]
    return tuple(kept), disagreeing


def shipped_dir() -> Path:
    """Return the folder of the shipped cards: in the package where a wheel put it, else beside the sources."""
    package = Path(__file__).parents[1]
    packed = package / "recipes" / "cards"
    return packed if packed.is_dir() else package.parents[1] / "recipes" / "cards"


def default_user_dir() -> Path:
    """Return the user's folder of cards: `LAYERCARD_CARDS`, else `layercard/cards` where the platform keeps data."""
    import platformdirs

    own = os.environ.get("LAYERCARD_CARDS")
    return Path(own).expanduser() if own else platformdirs.user_data_path("layercard", appauthor=False) / "cards"


def user_path(card: LayerCard, user_dir: Path | None = None) -> Path:
    """Return where a card lies in the user's folder."""
    return (user_dir or default_user_dir()) / f"{card.key}.json"
