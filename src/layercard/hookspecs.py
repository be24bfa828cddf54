"""The hooks through which plugins join layercard; built-ins use the same ones.

`register_*` fills a registry, `provide_*` returns data, `locate_*` and `tokenize_*` stop at the first answer, `after_*`
observes, `diagnose` looks at itself.
A plugin is a module or object with functions of these names, decorated with `layercard.hookimpl` and named by an
entry point of the group `layercard`. Stable: `register_scorers`, `locate_decoder_layers` and `provide_cards`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    import click
    from torch import nn

    from layercard.anatomy.layers import LayerStack
    from layercard.doctor.check import Check
    from layercard.hosts.protocol import Host
    from layercard.pipeline.placed_run import PlacedRun
    from layercard.placement.placement import LayerPlacement
    from layercard.placement.strategies import Strategy
    from layercard.scores.base import Scorer

PROJECT = "layercard"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def register_scorers(register: Callable[[Scorer], None]) -> None:
    """Call `register(scorer)` for each scorer."""


@hookspec
def register_strategies(register: Callable[[Strategy], None]) -> None:
    """Call `register(strategy)` for each strategy."""


@hookspec
def register_commands(cli: click.Group) -> None:
    """Add commands to the `layercard` command line."""


@hookspec
def extend_command(command: click.Command) -> None:
    """Add options to a command, whichever plugin registered it: `command` is this command line's own copy."""


@hookspec
def provide_cards() -> Iterable[Path]:  # type: ignore[empty-body]
    """Return folders that hold Layer Cards as `<model>/<dataset>.json`; they are read as safely as any other."""


@hookspec(firstresult=True)
def locate_decoder_layers(model: nn.Module) -> LayerStack | None:
    """Return the model's stack of layers, or None to leave it to the next plugin."""


@hookspec(firstresult=True)
def locate_host(trainer: Any) -> Host | None:
    """Return what the pipeline needs of this trainer, or None to leave it to the next plugin."""


@hookspec(firstresult=True)
def tokenize_examples(tokenizer: Any, examples: list[dict[str, Any]]) -> list[dict[str, list[int]]] | None:
    """Return `input_ids` and `labels` (-100 where nothing is learned) of language modelling examples, uncut, in order.

    As the trainer that the plugin knows would make them. An example holds `prompt` and `completion`, `messages`,
    `conversations` or `text`, and perhaps `tools` and `chat_template_kwargs`. None leaves them to the next plugin.
    """


@hookspec
def after_placement(placement: LayerPlacement) -> None:
    """Observe a placement that was applied and verified."""


@hookspec
def diagnose(folder: Path, place: Callable[..., PlacedRun]) -> Iterable[Check]:  # type: ignore[empty-body]
    """Return what `layercard doctor` should say of the plugin's host: whether it is there, and places layers in a toy run.

    `folder` is empty and goes afterwards; `place` is `layercard.place` with the plugins that work. `layercard.doctor.toy`
    holds a model, rows and checks for it. Whatever is raised is a failed check of this plugin.
    """
