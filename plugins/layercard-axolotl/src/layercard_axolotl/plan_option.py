"""Adds `--axolotl CONFIG` to `layercard plan`. Imports neither torch nor Axolotl, so that help stays fast."""

from __future__ import annotations

import copy
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from layercard.settings import PlacementSettings

FROM_CONFIG = ("model", "dataset", "target_modules")


def add_option(plan: click.Command) -> None:
    """Give the command the option, with which MODEL and the data come from the configuration."""
    argument = next(p for p in plan.params if p.name == "model")
    optional = copy.copy(argument)
    optional.required = False
    plan.params[plan.params.index(argument)] = optional
    plan.params.append(
        click.Option(
            ["--axolotl"],
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            metavar="CONFIG",
            help="Plan for this Axolotl configuration, in place of MODEL; -o writes it with the chosen layers.",
        )
    )
    ordinary = plan.callback
    assert ordinary is not None

    def planned(**values: Any) -> Any:
        config = values.pop("axolotl")
        if config is not None:
            return _plan(config, values)
        if values["model"] is None:
            raise click.MissingParameter(ctx=click.get_current_context(), param=argument)
        return ordinary(**values)

    plan.callback = planned


def _plan(config: Path, values: dict[str, Any]) -> None:
    for name in FROM_CONFIG:
        if values.get(name) is not None:
            raise click.UsageError(
                f"`--axolotl` reads the model, the data and the targets from {config}. Drop `{name}`."
            )
    if values.get("check") is not None:
        raise click.UsageError(
            "`--check` compares with a placement.json, and `--axolotl` writes a configuration. Drop one."
        )
    from layercard.cli.output import Output
    from layercard_axolotl.plan import plan_configuration

    asked = {f.name: values[f.name] for f in fields(PlacementSettings) if values.get(f.name) is not None}
    output = Output(as_json=values["as_json"])
    output.finish(plan_configuration(config, values["path"], asked, output))
