"""`layercard cards match`: how far every Layer Card is from speaking for a model and data, and what those that do say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from layercard.cli.help import Command, examples
from layercard.cli.options import (
    CONTEXT,
    PROBE_SETTINGS,
    data_source,
    model_options,
    model_source,
    output_options,
    reading_options,
    settings_from,
    settings_options,
    target_modules,
)
from layercard.cli.output import Output, starting
from layercard.cli.writable import refuse_unwritable

ASKED = (*PROBE_SETTINGS, "prefer", "min_entry", "num_layers", "fraction", "cards", "community_cards", "min_spearman")


@click.command(cls=Command, context_settings=CONTEXT, epilog=examples("layercard cards match ./model data.jsonl"))
@model_options
@click.argument("dataset", metavar="DATA")
@reading_options
@settings_options(ASKED)
@click.option(
    "-o", "--output", "path", type=click.Path(path_type=Path, dir_okay=False), help="Write placement.json here."
)
@output_options
def match(path: Path | None, as_json: bool, **values: Any) -> None:
    """Show how near each Layer Card is to MODEL (a folder or a Hub id) on DATA (a file or a Hub id), and what follows.

    Probes the data where a card is of this model; ρ is Spearman's correlation of the layers' ranks by resnorm, beside it ρ
    given depth. Trains nothing.
    """
    refuse_unwritable(path, "--output")
    model, data, settings = model_source(values), data_source(values), settings_from(values)
    with starting():
        from layercard.cli.cards.matching import find_matches
        from layercard.cli.loading import settled
    from layercard.cli.next_steps import Training, say_plan_next

    output = Output(as_json=as_json)
    model = settled(model, data, output.say)
    found = find_matches(model, data, settings, target_modules(values), output)
    found.show(output)
    if path is not None:
        found.placement.save(path)
        output.say(f"Wrote {path}.")
    language = model.purpose is not None and model.purpose.task == "causal"
    say_plan_next(output, found.placement, path, Training(settings.layers_path, None, target_modules(values), language))
    output.finish(found.document())
