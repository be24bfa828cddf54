"""Every command by name, each with the plugin that supplies it; a clash of names raises and names both owners."""

from __future__ import annotations

import click
import pluggy

from layercard.plugins import Registry


class NamedCommand(click.Command):
    """A command as a registry holds it: always with a name."""

    name: str


def command_registry(manager: pluggy.PluginManager) -> Registry[NamedCommand]:
    """Return the commands of all plugins; raise `PluginError` where two share a name."""
    registry: Registry[NamedCommand] = Registry("command")
    for implementation in manager.hook.register_commands.get_hookimpls():
        own = click.Group()  # a group of its own, for click lets a second command replace the first
        implementation.function(cli=own)
        for command in own.commands.values():
            registry.add(command, implementation.plugin_name)  # type: ignore[arg-type]
    return registry
