"""Builds the plugin manager and the registries that plugins fill.

`build_manager` makes a fresh one (tests do); `manager` keeps one for the process. A clash of names raises and names
both owners; a name that nobody registered raises and suggests the nearest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any, Generic, Protocol, TypeVar

import pluggy

from layercard import hookspecs
from layercard.errors import PluginError, SettingsError, nearest, one_of


class Named(Protocol):
    """Anything that a registry can hold."""

    @property
    def name(self) -> str:
        """The name users write."""


Item = TypeVar("Item", bound=Named)


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


def build_manager(plugins: Iterable[tuple[str, Any]] = (), *, entry_points: bool = True) -> pluggy.PluginManager:
    """Return a manager with the built-ins, the `plugins` given as (name, plugin), and the installed ones."""
    from layercard import builtins

    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(builtins, name="layercard")
    for name, plugin in plugins:
        manager.register(plugin, name=name)
    if entry_points:
        manager.load_setuptools_entrypoints(hookspecs.PROJECT)
    manager.check_pending()
    return manager


@cache
def manager() -> pluggy.PluginManager:
    """Return the process's manager, built at first use."""
    return build_manager()


def scorers(manager: pluggy.PluginManager) -> Registry[Any]:
    """Return every scorer by name."""
    return _filled(manager, "register_scorers", "score")


def strategies(manager: pluggy.PluginManager) -> Registry[Any]:
    """Return every strategy by name."""
    return _filled(manager, "register_strategies", "strategy")


def _filled(manager: pluggy.PluginManager, hook: str, setting: str) -> Registry[Any]:
    registry: Registry[Any] = Registry(setting)
    for implementation in getattr(manager.hook, hook).get_hookimpls():
        owner = implementation.plugin_name
        implementation.function(register=lambda item, owner=owner: registry.add(item, owner))
    return registry
