"""`layercard doctor`: whether layercard works in this environment and on this machine, and what to do where it does not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table
from rich.text import Text

from layercard import plugins
from layercard.cli.help import Command, examples
from layercard.cli.next_steps import say_next
from layercard.cli.options import CONTEXT, output_options
from layercard.cli.output import Output, starting
from layercard.cli.plugins import describe_plugins
from layercard.errors import EXIT_CHECK_FAILED

if TYPE_CHECKING:
    import pluggy

    from layercard.doctor.check import Check

STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red"}


@click.command(
    cls=Command,
    context_settings=CONTEXT,
    epilog=examples("layercard doctor", "layercard doctor --output-dir out --json"),
)
@click.option(
    "--output-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Where you train into; whether files can be written there is tried out.  [default: this folder]",
)
@output_options
@click.pass_context
def doctor(context: click.Context, output_dir: Path, as_json: bool) -> None:
    """Check this installation and machine, and place and train a toy run."""

    def usable(manager: pluggy.PluginManager) -> None:
        context.obj["build_cli"](manager)
        plugins.extensions(manager)

    with starting():
        from layercard.doctor.run import examine

        manager, broken = plugins.sound_manager(usable)
    output = Output(as_json=as_json)
    rows = describe_plugins(manager, context.obj["commands"])
    checks = examine(manager, rows, broken, output_dir)
    output.console.print(_table(checks))
    _say_meaning(output, checks)
    any_failed = any(check.status == "failed" for check in checks)
    output.finish({"ok": not any_failed, "checks": [check.to_dict() for check in checks]})
    context.exit(EXIT_CHECK_FAILED if any_failed else 0)


def _table(checks: Sequence[Check]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("", "check", "found, and what to do"):
        table.add_column(name, overflow="fold")
    for check in checks:
        found = check.found if check.advice is None else f"{check.found}\n→ {check.advice}"
        table.add_row(Text(check.status, STYLES[check.status]), Text(check.name), Text(found))
    return table


def _say_meaning(output: Output, checks: Sequence[Check]) -> None:
    wrong = [check.name for check in checks if check.status == "failed"]
    doubtful = [check.name for check in checks if check.status == "warning"]
    if wrong:
        output.say(f"Failed: {', '.join(wrong)}. layercard cannot be relied on here until that is mended.")
        say_next(output, "do what stands behind the arrows, then check again.", "  layercard doctor")
        return
    if doubtful:
        output.say(f"layercard works here. Warnings: {', '.join(doubtful)}.")
    else:
        output.say("layercard works here.")
    say_next(output, "see what layers of your model promise.", "  layercard plan MODEL --dataset DATA")
