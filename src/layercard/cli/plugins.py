"""`layercard plugins`: what is installed, and what each plugin supplies."""

from __future__ import annotations

from typing import Any

import click
import pluggy
from rich.table import Table

from layercard import __version__
from layercard import plugins as registries
from layercard.cli.commands import command_registry
from layercard.cli.help import Command, examples
from layercard.cli.next_steps import say_next
from layercard.cli.options import CONTEXT, output_options
from layercard.cli.output import Output

KINDS = ("scores", "strategies", "commands")


@click.command(cls=Command, context_settings=CONTEXT, epilog=examples("layercard plugins", "layercard plugins --json"))
@output_options
def plugins(as_json: bool) -> None:
    """List plugins, with the scores, strategies and commands that each supplies."""
    output = Output(as_json=as_json)
    listed = describe_plugins(registries.manager())
    table = Table(box=None, pad_edge=False)
    for name in ("plugin", "version", *KINDS):
        table.add_column(name, overflow="fold")
    for row in listed:
        table.add_row(row["name"], row["version"], *("\n".join(row[kind]) for kind in KINDS))
    output.console.print(table)
    choose = "  layercard plan MODEL --dataset DATA --strategy NAME --score NAME"
    say_next(output, "use a score or a strategy by its name.", choose)
    output.finish({"plugins": listed})


def describe_plugins(manager: pluggy.PluginManager) -> list[dict[str, Any]]:
    """Return name, version, scores, strategies, commands and hooks of every plugin, built-ins first."""
    supplied = dict(
        zip(
            KINDS,
            (registries.scorers(manager), registries.strategies(manager), command_registry(manager)),
            strict=True,
        )
    )
    versions = {id(plugin): distribution.version for plugin, distribution in manager.list_plugin_distinfo()}
    rows = []
    for name, plugin in manager.list_name_plugin():
        row: dict[str, Any] = {"name": name, "version": versions.get(id(plugin), __version__)}
        for kind, registry in supplied.items():
            row[kind] = [item for item in registry if registry.owner(item) == name]
        row["hooks"] = sorted(caller.name for caller in manager.get_hookcallers(plugin) or ())
        rows.append(row)
    return sorted(rows, key=lambda row: row["name"] != "layercard")
