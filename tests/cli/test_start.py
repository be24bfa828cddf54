"""The installed command starts fast: help and version import no torch; nothing waits for a person."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from layercard import __version__

COMMAND = str(Path(sys.executable).parent / "layercard")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["plan", "--help"], ["probe", "--help"]])
def test_help_and_version_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from layercard.cli.main import main\n"
        f"code = main({arguments!r})\n"
        "heavy = {'torch', 'transformers', 'peft', 'trl', 'datasets', 'accelerate'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL)


def test_the_installed_command_says_its_version() -> None:
    assert run("--version").stdout == f"layercard {__version__}\n"


def test_help_lists_the_commands_and_generated_options() -> None:
    listed = run("--help").stdout
    assert all(name in listed for name in ("probe", "plan", "plugins"))
    options = run("plan", "--help").stdout
    assert "--lora-layers" in options
    assert "[quality|balanced|speed]" in options
    assert "[default: balanced]" in options


@pytest.mark.parametrize(("arguments", "code"), [(["plan"], 2), (["nothing"], 2), (["plan", "./nowhere"], 1)])
def test_exit_codes_of_the_installed_command(arguments: list[str], code: int) -> None:
    done = run(*arguments)
    assert done.returncode == code
    assert done.stderr.splitlines()[-1].startswith("Error:")


INTERRUPTED = """
import signal, sys
import click
from layercard import hookspecs, plugins
from layercard.cli.main import main

class Slow:
    @hookspecs.hookimpl
    def register_commands(self, cli):
        @cli.command("slow")
        def slow():
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
            signal.raise_signal(signal.SIGINT)  # what Ctrl-C sends

manager = plugins.manager()
manager.register(Slow(), "slow")
plugins.manager = lambda: manager
sys.exit(main(["slow"]))
"""


def test_an_interrupt_ends_with_130_and_one_line() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    assert done.stderr.split() == ["Error:", "interrupted"]
