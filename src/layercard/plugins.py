"""Builds the plugin manager and asks it for what plugins supply.

`build_manager` makes a fresh one (tests do); `manager` keeps one for the process. A clash of names raises and names
both owners; a name that nobody registered raises and suggests the nearest. A plugin that cannot be loaded raises too: to
train without it would be to train otherwise than was asked for. Only `layercard doctor` goes on, by `sound_manager`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from layercard import builtins, hookspecs
from layercard.errors import PluginError
from layercard.registry import CardFolders, Extensions, Registry

if TYPE_CHECKING:
    from layercard.placement.strategies import Strategy
    from layercard.scores.base import Scorer

BUILT_INS, COMMANDS = "layercard", "layercard.cli"
"""The names of the two plugins that layercard is itself: what it computes with, and its command line."""


def shown_owner(name: str) -> str:
    """Return what people read as the owner of what the plugin `name` supplies: the built-ins are one."""
    return BUILT_INS if name == COMMANDS else name


def build_manager(
    plugins: Iterable[tuple[str, Any]] = (), *, entry_points: bool = True, installed: Collection[str] | None = None
) -> pluggy.PluginManager:
    """Return a manager with the built-ins, the `plugins` given as (name, plugin), and the installed ones.

    With `installed` those of these names alone. Raises `PluginError` where an installed one cannot be loaded.
    """
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(builtins, name=BUILT_INS)
    for name, plugin in plugins:
        manager.register(plugin, name=name)
    if entry_points:
        for name in installed_names() if installed is None else installed:
            _load(manager, name)
    manager.check_pending()
    return manager


def installed_names() -> list[str]:
    """Return the names of the installed plugins, each once."""
    return list(dict.fromkeys(point.name for point in entry_points(group=hookspecs.PROJECT)))


def _load(manager: pluggy.PluginManager, name: str) -> None:
    try:
        manager.load_setuptools_entrypoints(hookspecs.PROJECT, name)
        manager.check_pending()
    except Exception as error:
        raise PluginError(
            f"The plugin `{name}` cannot be loaded: {type(error).__name__}: {' '.join(str(error).split())}. Mend or uninstall "
            "it; `layercard doctor` checks every plugin."
        ) from error


def sound_manager(
    accepts: Callable[[pluggy.PluginManager], object],
) -> tuple[pluggy.PluginManager, dict[str, Exception]]:
    """Return a manager of the installed plugins that can be used together, and by name what is wrong with the others.

    `accepts` raises for a manager that cannot be used. The plugins are tried in the order in which they are installed, so of
    two that clash the first stays.
    """
    sound, broken = build_manager(installed=()), {}
    names: list[str] = []
    for name in installed_names():
        try:
            candidate = build_manager(installed=(*names, name))
            accepts(candidate)
        except Exception as error:  # noqa: BLE001  a plugin may raise whatever it likes
            broken[name] = error
        else:
            sound, names = candidate, [*names, name]
    return sound, broken


@cache
def manager() -> pluggy.PluginManager:
    """Return the process's manager, built at first use."""
    return build_manager()


def extensions(of: pluggy.PluginManager | None = None) -> Extensions:
    """Ask the hooks of the manager `of`, by default the process's, once; raise `PluginError` where plugins contradict."""
    found = of or manager()
    hook = found.hook
    return Extensions(
        scorers=scorers(found),
        strategies=strategies(found),
        card_folders=card_folders(found),
        locate_decoder_layers=lambda model: hook.locate_decoder_layers(model=model),
        locate_host=lambda trainer: hook.locate_host(trainer=trainer),
        tokenize_examples=lambda tokenizer, examples: hook.tokenize_examples(tokenizer=tokenizer, examples=examples),
        after_placement=lambda placement: hook.after_placement(placement=placement),
    )


def scorers(manager: pluggy.PluginManager) -> Registry[Scorer]:
    """Return every scorer by name."""
    return _filled(manager, "register_scorers", "score")


def strategies(manager: pluggy.PluginManager) -> Registry[Strategy]:
    """Return every strategy by name."""
    return _filled(manager, "register_strategies", "strategy")


def card_folders(of: pluggy.PluginManager | None = None) -> CardFolders:
    """Return (plugin's name, folder) for every folder of Layer Cards that a plugin of the manager `of` provides.

    By default of the process's. Raises `PluginError` where a plugin answers with anything but paths.
    """
    found: list[tuple[str, Path]] = []
    for implementation in (of or manager()).hook.provide_cards.get_hookimpls():
        given: Any = implementation.function()
        for folder in given:
            if not isinstance(folder, Path):
                raise PluginError(
                    f"The plugin `{implementation.plugin_name}` answers `provide_cards` with {folder!r}; folders of "
                    "Layer Cards are wanted, as pathlib.Path. Use another version of it, or uninstall it."
                )
            found.append((implementation.plugin_name, folder))
    return tuple(found)


def _filled(manager: pluggy.PluginManager, hook: str, setting: str) -> Registry[Any]:
    registry: Registry[Any] = Registry(setting)
    for implementation in getattr(manager.hook, hook).get_hookimpls():
        owner = implementation.plugin_name
        implementation.function(register=lambda item, owner=owner: registry.add(item, owner))
    return registry
