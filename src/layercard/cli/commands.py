"""Every command by name, each with the plugin that supplies it; a clash of names raises and names both owners.

This module is the plugin that supplies layercard's own.
"""

from __future__ import annotations

import sys

import click
import pluggy

from layercard.hookspecs import hookimpl
from layercard.plugins import COMMANDS, shown_owner
from layercard.registry import Registry


class NamedCommand(click.Command):
    """A command as a registry holds it: always with a name."""

    name: str


def command_registry(manager: pluggy.PluginManager) -> Registry[NamedCommand]:
    """Return the commands of all plugins; raise `PluginError` where two share a name."""
    if not manager.has_plugin(COMMANDS):
        manager.register(sys.modules[__name__], name=COMMANDS)
    registry: Registry[NamedCommand] = Registry("command")
    for implementation in manager.hook.register_commands.get_hookimpls():
        own = click.Group()  # a group of its own, for click lets a second command replace the first
        implementation.function(cli=own)
        for command in own.commands.values():
            registry.add(command, shown_owner(implementation.plugin_name))  # type: ignore[arg-type]
    return registry


@hookimpl
def register_commands(cli: click.Group) -> None:
    """Add `probe`, `plan`, `measure`, `report`, `compare`, `plugins`, `doctor` and `cards`."""
    from layercard.cli.cards.group import cards
    from layercard.cli.compare import compare
    from layercard.cli.doctor import doctor
    from layercard.cli.measure import measure
    from layercard.cli.plan import plan
    from layercard.cli.plugins import plugins
    from layercard.cli.probe import probe
    from layercard.cli.report import report

    for command in (probe, plan, measure, report, compare, plugins, doctor, cards):
        cli.add_command(command)
