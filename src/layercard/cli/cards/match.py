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
from layercard.cli.output import Output

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
    model, data, settings = model_source(values), data_source(values), settings_from(values)
    from layercard.cli.cards.matching import find_matches

    output = Output(as_json=as_json)
    found = find_matches(model, data, settings, target_modules(values), output)
    found.show(output)
    if path is not None:
        found.placement.save(path)
        output.say(f"Wrote {path}.")
    output.finish(found.document())
