"""`layercard probe`: score every layer of a model on a dataset."""

from __future__ import annotations

from typing import Any

import click

from layercard import plugins
from layercard.cli.given import options_given
from layercard.cli.help import Command, examples
from layercard.cli.options import (
    CONTEXT,
    PROBE_SETTINGS,
    data_options,
    data_source,
    model_options,
    model_source,
    output_options,
    settings_from,
    settings_options,
    target_modules,
)
from layercard.cli.output import Output, starting


@click.command(
    cls=Command,
    context_settings=CONTEXT,
    epilog=examples(
        "layercard probe Qwen/Qwen3-0.6B --dataset data.jsonl",
        "layercard probe ./model --dataset data.jsonl --score resnorm --score cka",
    ),
)
@model_options
@data_options(required=True)
@click.option("--score", "scores", multiple=True, help="A score to compute; may be repeated.  [default: resnorm]")
@settings_options(PROBE_SETTINGS)
@output_options
@click.pass_context
def probe(context: click.Context, scores: tuple[str, ...], as_json: bool, **values: Any) -> None:
    """Score every layer of MODEL (a folder or a Hub id) on a dataset, in one pass. Trains nothing."""
    settings, model, data = settings_from(values), model_source(values), data_source(values)
    wanted = tuple(dict.fromkeys(scores or ("resnorm",)))
    extensions = plugins.extensions()
    for name in wanted:
        extensions.scorers[name]
    with starting():
        from layercard.cli.examine import Given, examine
    from layercard.cli.next_steps import SHARED, say_command
    from layercard.cli.tables import show_layers

    output = Output(as_json=as_json)
    examined = examine(Given(model, data, settings, target_modules(values), extensions, output), wanted)
    show_layers(output.console, examined.scores)
    s = examined.statistics
    output.say(f"{s.examples} examples, {s.tokens:,} tokens, {s.seconds:.1f} s.")
    for note in s.notes:
        output.say(f"Note: {note}")
    output.say(f"Layers with more {wanted[0]} promise more on this data; what leaving others out costs is unproven.")
    words = ["--strategy", "high", *(["--score", wanted[0]] if wanted[0] != "resnorm" else []), "-o", "placement.json"]
    say_command(output, "choose layers by it.", "layercard", "plan", *options_given(context, SHARED), *words)
    output.finish(examined.document() | {"model": model.name})
