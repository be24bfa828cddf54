"""Help of every command: `-h`, groups, examples that parse, whole summaries, and nothing wider than a terminal."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator

import click
import pluggy
import pytest

from command_line import Run, runner
from layercard import builtins, hookspecs, plugins
from layercard.cli.help import FEW, OPTIONS
from layercard.cli.main import build_cli

CLI = build_cli(plugins.manager())
UNPROCESSED = {"trl-sft"}
"""Its options are TRL's, and so is its help."""


def commands(group: click.Group, *before: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *before, name)
        elif name not in UNPROCESSED:
            yield (*before, name), command


EVERY = dict(commands(CLI))
GROUPS: list[tuple[str, ...]] = [(), ("cards",)]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COLUMNS", "80")
    return runner(capfd)


@pytest.mark.parametrize("words", [*EVERY, *GROUPS], ids=" ".join)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_is_there_and_fits_a_terminal(run: Run, words: tuple[str, ...], flag: str) -> None:
    ran = run(*words, flag)
    assert ran.code == 0
    assert [line for line in ran.out.splitlines() if len(line) > 80] == []
    assert "Example" in ran.out


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_examples_are_commands_that_parse(words: tuple[str, ...]) -> None:
    command = EVERY[words]
    lines = [line.strip() for line in (command.epilog or "").splitlines() if line.startswith("  ")]
    assert lines
    for line in lines:
        given = shlex.split(line)
        assert tuple(given[: 1 + len(words)]) == ("layercard", *words)
        command.make_context(words[-1], given[1 + len(words) :], obj={"debug": False})


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_every_option_of_a_long_list_stands_under_a_heading(words: tuple[str, ...]) -> None:
    command = EVERY[words]
    options = [p for p in command.get_params(click.Context(command)) if isinstance(p, click.Option) and not p.hidden]
    if len(options) > FEW:
        named = {name for names in OPTIONS.values() for name in names}
        assert {p.name for p in options if "--help" not in p.opts} <= named
        assert all(p.help for p in options)


@pytest.mark.parametrize("words", GROUPS, ids=" ".join)
def test_summaries_are_whole(run: Run, words: tuple[str, ...]) -> None:
    listed = run(*words, "-h")
    assert "..." not in listed.out.partition("[ARGS]...")[2]
    group = CLI.commands[words[0]] if words else CLI
    assert isinstance(group, click.Group)
    for name, command in group.commands.items():
        assert name in listed.out
        assert command.get_short_help_str(1000) in listed.words


def test_a_plugins_option_is_listed_too() -> None:
    class Adds:
        @hookspecs.hookimpl
        def extend_command(self, command: click.Command) -> None:
            command.params.append(click.Option(["--strange"], help="A plugin's."))

    manager = plugins.build_manager([("adds", Adds())])
    probe = build_cli(manager).commands["probe"]
    text = probe.get_help(click.Context(probe))
    assert "Other options:\n  --strange TEXT" in text


def bare_cli() -> click.Group:
    """The command line where no plugin is installed."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(builtins, "layercard")
    return build_cli(manager)


@pytest.mark.parametrize(
    ("words", "plugin"),
    [
        (["plan", "--axolotl", "config.yml"], "layercard-axolotl"),
        (["trl-sft", "--lora_layers", "auto"], "layercard-trl"),
        (["demo"], "layercard-trl"),
    ],
)
def test_what_a_missing_plugin_supplies_names_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], words: list[str], plugin: str
) -> None:
    monkeypatch.setattr("layercard.cli.main.build_cli", lambda _: bare_cli())
    ran = runner(capfd)(*words)
    assert ran.code == 2
    assert f"comes with {plugin}, which is not installed" in ran.words
    assert f"pip install ./plugins/{plugin}" in ran.words


def test_an_unknown_option_or_command_names_the_nearest(run: Run) -> None:
    assert "plan" in run("plna").err
    assert "--dataset" in run("probe", "model", "--datset", "d.jsonl").err


def test_it_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "layercard", "--version"], capture_output=True, text=True)
    assert done.stdout.startswith("layercard ")
