"""Whatever is typed behind `layercard`, it ends with an exit code that is documented and without a traceback.

Words are the commands, their options, values of the right kind and of others, in any order. Nothing here names a model that
exists, so no line gets as far as weights.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import click
import pytest
from effort import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layercard import plugins
from layercard.cli import main as program
from layercard.errors import EXIT_CHECK_FAILED, EXIT_FAILED, EXIT_QUALITY, EXIT_USAGE

CODES = {0, EXIT_FAILED, EXIT_USAGE, EXIT_CHECK_FAILED, EXIT_QUALITY}
CLI = program.build_cli(plugins.manager())
LAST = {"demo", "doctor", "trl-sft"}
"""They train where nothing is wrong with their options; only their help and wrong options are tried."""


def commands(group: click.Group, *before: str) -> dict[tuple[str, ...], click.Command]:
    found: dict[tuple[str, ...], click.Command] = {}
    for name, command in group.commands.items():
        inside = commands(command, *before, name) if isinstance(command, click.Group) else {(*before, name): command}
        found |= inside
    return found


EVERY = {words: command for words, command in commands(CLI).items() if words[0] not in LAST}
WORD = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
"""What a shell can pass on: it ends words at null bytes."""
VALUES = (
    st.sampled_from(
        ["", "-1", "0", "3", "0.5", "nan", "inf", "1e400", "auto", "high", "resnorm", "off", "8GiB", "=", "a=b"]
    )
    | st.sampled_from(["{strategy: high}", "[1, 2]", "p.json", "./nowhere", "nowhere.jsonl", "é", "-", "--"])
    | WORD
)


@st.composite
def lines(draw: st.DrawFn) -> list[str]:
    """A command, and words of its own and of others."""
    words = draw(st.sampled_from(sorted(EVERY)))
    options = [p for p in EVERY[words].params if isinstance(p, click.Option)]
    flags = [flag for p in options for flag in (*p.opts, *p.secondary_opts) if flag != "--debug"]  # shows tracebacks
    flag = st.sampled_from([*flags, "--nothing"])
    part = (
        flag.map(lambda f: [f])
        | st.tuples(flag, VALUES).map(list)
        | st.tuples(flag, VALUES).map("=".join).map(lambda x: [x])
    )
    parts = draw(st.lists(part | st.sampled_from(["./nowhere", "./nowhere/card.json"]).map(lambda x: [x]), max_size=5))
    return [*words, *(word for part in parts for word in part)]


@pytest.fixture(autouse=True)
def _away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("XDG_DATA_HOME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path))


def ended(arguments: list[str]) -> None:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = program.main(arguments)
    said = out.getvalue() + err.getvalue()
    assert code in CODES, (arguments, code)
    assert "Traceback" not in said, arguments
    assert "`layercard --debug …` shows where" not in said, f"{arguments}: {said}"
    assert said.strip() or code == 0, arguments


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=examples(150))
@given(lines())
def test_a_command_line_ends_with_a_known_code(arguments: list[str]) -> None:
    ended(arguments)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=examples(50))
@given(st.lists(WORD | st.sampled_from(["plan", "cards", "list", "-h", "--version"]), max_size=4))
def test_any_words_end_with_a_known_code(arguments: list[str]) -> None:
    if not LAST & set(arguments) and "--debug" not in arguments:
        ended(arguments)


@pytest.mark.parametrize("command", sorted(LAST - {"trl-sft"}))
def test_commands_that_train_refuse_what_they_do_not_know(command: str) -> None:
    ended([command, "--nothing"])
