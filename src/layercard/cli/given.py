"""The words that a command was given, for the record of a card and for the commands that are named as the next ones."""

from __future__ import annotations

from collections.abc import Callable, Collection

import click
from click.core import ParameterSource


def words_of(context: click.Context, *, but: Collection[str] = ()) -> list[str]:
    """Return the command with the words it was given, but for the parameters of these names."""
    return [*context.command_path.split(), *_given(context, lambda name: name not in but)]


def options_given(context: click.Context, only: Collection[str]) -> list[str]:
    """Return the words that gave the parameters of these names, the ones that were given."""
    return _given(context, lambda name: name in only)


def _given(context: click.Context, wanted: Callable[[str], bool]) -> list[str]:
    words = []
    for parameter in context.command.params:
        name = parameter.name or ""
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if given and wanted(name) and name in context.params:
            words += _words(parameter, context.params[name])
    return words


def _words(parameter: click.Parameter, value: object) -> list[str]:
    if isinstance(parameter, click.Argument):
        return [str(value)]
    flag = max(parameter.opts, key=len)
    if isinstance(value, bool):
        return [flag] if value else []
    if parameter.multiple and isinstance(value, list | tuple):
        return [word for one in value for word in (flag, str(one))]
    return [flag, ",".join(map(str, value)) if isinstance(value, list) else str(value)]
