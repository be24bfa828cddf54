"""`Registry`: named items that plugins supply, and `Extensions`: all that they supply to one run, as plain values.

Whoever opens a door (`place`, `probe`, a command, a host) asks the plugins once (`layercard.plugins.extensions`) and hands
this down; below the door nothing knows the plugin manager.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias, TypeVar

from layercard.errors import PluginError, SettingsError, nearest, one_of

if TYPE_CHECKING:
    from torch import nn

    from layercard.anatomy.layers import LayerStack
    from layercard.hosts.protocol import Host
    from layercard.placement.placement import LayerPlacement
    from layercard.placement.strategies import Strategy
    from layercard.scores.base import Scorer


class Named(Protocol):
    """Anything that a registry can hold."""

    @property
    def name(self) -> str:
        """The name users write."""


Item = TypeVar("Item", bound=Named)
CardFolders: TypeAlias = tuple[tuple[str, Path], ...]
"""(plugin's name, folder of Layer Cards) pairs."""
TokenizeExamples: TypeAlias = Callable[[Any, list[dict[str, Any]]], list[dict[str, list[int]]]]
"""From a tokenizer and language modelling examples to their tokens, as the hook `tokenize_examples` says."""


class Registry(Mapping[str, Item], Generic[Item]):
    """Items by name, each with the plugin that supplied it."""

    def __init__(self, setting: str) -> None:
        self._setting = setting
        self._items: dict[str, Item] = {}
        self._owners: dict[str, str] = {}

    def add(self, item: Item, owner: str) -> None:
        """Register `item`; raise `PluginError` where its name is taken."""
        if item.name in self._items:
            raise PluginError(
                f"The plugins `{self._owners[item.name]}` and `{owner}` both register the {self._setting} "
                f"`{item.name}`. Names are unique; uninstall one of them or rename its {self._setting}."
            )
        self._items[item.name] = item
        self._owners[item.name] = owner

    def owner(self, name: str) -> str:
        """Return the name of the plugin that registered `name`."""
        self[name]
        return self._owners[name]

    def __getitem__(self, name: str) -> Item:
        if name not in self._items:
            raise SettingsError(
                f"`{self._setting}` is {name!r}, which no plugin registers.{nearest(name, self._items)} "
                f"Known are {one_of(sorted(self._items))}."
            )
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


@dataclass(frozen=True)
class Extensions:
    """What layercard itself and its plugins supply; the hooks of `layercard.hookspecs` say what each function does."""

    scorers: Registry[Scorer]
    strategies: Registry[Strategy]
    card_folders: CardFolders
    locate_decoder_layers: Callable[[nn.Module], LayerStack]
    locate_host: Callable[[Any], Host | None]
    tokenize_examples: TokenizeExamples
    after_placement: Callable[[LayerPlacement], object]
