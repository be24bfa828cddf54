"""`layercard plugins`: what is installed, and what each plugin supplies."""

from __future__ import annotations

from typing import Any

import click
import pluggy
from rich.table import Table

from layercard import __version__
from layercard import plugins as registries
from layercard.cli.help import Command, examples
from layercard.cli.next_steps import say_next
from layercard.cli.options import CONTEXT, output_options
from layercard.cli.output import Output
from layercard.registry import Registry

KINDS = ("scores", "strategies", "commands")


@click.command(cls=Command, context_settings=CONTEXT, epilog=examples("layercard plugins", "layercard plugins --json"))
@output_options
@click.pass_obj
def plugins(state: dict[str, Any], as_json: bool) -> None:
    """List plugins, with the scores, strategies and commands that each supplies."""
    output = Output(as_json=as_json)
    listed = describe_plugins(state["manager"], state["commands"])
    table = Table(box=None, pad_edge=False)
    for name in ("plugin", "version", *KINDS):
        table.add_column(name, overflow="fold")
    for row in listed:
        table.add_row(row["name"], row["version"], *("\n".join(row[kind]) for kind in KINDS))
    output.console.print(table)
    choose = "  layercard plan MODEL --dataset DATA --strategy NAME --score NAME"
    say_next(output, "use a score or a strategy by its name.", choose)
    output.finish({"plugins": listed})


def describe_plugins(manager: pluggy.PluginManager, commands: Registry[Any]) -> list[dict[str, Any]]:
    """Return name, version, scores, strategies, commands and hooks of every plugin, built-ins first."""
    supplied: dict[str, Registry[Any]] = {
        "scores": registries.scorers(manager),
        "strategies": registries.strategies(manager),
        "commands": commands,
    }
    versions = {id(plugin): distribution.version for plugin, distribution in manager.list_plugin_distinfo()}
    rows: dict[str, dict[str, Any]] = {}
    for name, plugin in manager.list_name_plugin():
        owner = registries.shown_owner(name)
        row = rows.setdefault(owner, {"name": owner, "version": versions.get(id(plugin), __version__), "hooks": []})
        row["hooks"] = sorted({*row["hooks"], *(caller.name for caller in manager.get_hookcallers(plugin) or ())})
    for owner, row in rows.items():
        row |= {kind: [item for item in found if found.owner(item) == owner] for kind, found in supplied.items()}
    return sorted(rows.values(), key=lambda row: row["name"] != registries.BUILT_INS)
