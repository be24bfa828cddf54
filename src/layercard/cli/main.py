"""`layercard`: builds the command line from what plugins register, and turns errors into one line and an exit code.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a check failed, 4 a placement keeps too little quality, 130 interrupted.
`layercard --debug COMMAND …` shows the traceback.
"""

from __future__ import annotations

import copy
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click
import pluggy

from layercard import __version__, plugins
from layercard.cli.commands import command_registry
from layercard.cli.help import PLUGINS, Group, examples, missing
from layercard.cli.options import CONTEXT
from layercard.errors import EXIT_FAILED, EXIT_INTERRUPTED, LayercardError

DOCTOR = "doctor"
"""The command that runs where plugins cannot be loaded."""


def build_cli(manager: pluggy.PluginManager) -> click.Group:
    """Return the group with every command that plugins register."""

    @click.group(
        cls=Group,
        context_settings=CONTEXT,
        help="Find the layers worth adapting before a LoRA fine-tune, and adapt only those.",
        epilog=examples("layercard probe ./model --dataset data.jsonl", "layercard plan ./model --help"),
    )
    @click.option("--debug", is_flag=True, help="Show the traceback of an error.")
    @click.version_option(__version__, message="layercard %(version)s")
    @click.pass_context
    def cli(context: click.Context, debug: bool) -> None:
        context.obj |= {"debug": debug, "manager": manager, "commands": commands, "build_cli": build_cli}

    commands = command_registry(manager)
    for command in commands.values():
        own = copy.copy(command)
        own.params = list(command.params)
        manager.hook.extend_command(command=own)
        cli.add_command(own)
    return cli


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; `arguments` default to the process's."""
    state: dict[str, Any] = {"debug": False}
    try:
        cli = _command_line(sys.argv[1:] if arguments is None else arguments)
        code = cli.main(arguments, prog_name="layercard", standalone_mode=False, obj=state)
    except click.ClickException as error:
        told = _naming_plugin(error)
        told.show()
        return told.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _failed("interrupted", EXIT_INTERRUPTED, debug=False)
    except LayercardError as error:
        return _failed(str(error), error.exit_code, debug=state["debug"])
    except Exception as error:  # noqa: BLE001  the edge of the program: whatever it is, a person gets one line
        hint = "" if state["debug"] else " (`layercard --debug …` shows where)"
        return _failed(f"{type(error).__name__}: {_one_line(error)}{hint}", EXIT_FAILED, debug=state["debug"])
    return code if isinstance(code, int) else 0


def _command_line(arguments: Sequence[str]) -> click.Group:
    """Return the command line of all plugins; for `doctor` of those that can be used, since it says what is wrong with others."""
    if next((word for word in arguments if not word.startswith("-")), None) == DOCTOR:
        return build_cli(plugins.sound_manager(build_cli)[0])
    return build_cli(plugins.manager())


def _naming_plugin(error: click.ClickException) -> click.ClickException:
    """Return an error that names the plugin where an unknown option is of one of layercard's own."""
    if isinstance(error, click.NoSuchOption) and error.option_name in PLUGINS:
        return click.UsageError(f"The option `{error.option_name}` {missing(error.option_name)}", error.ctx)
    return error


def _failed(message: str, code: int, *, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    click.echo(f"Error: {message}", err=True)
    return code


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())
