"""`layercard measure`: time steps of several placements against all-layer LoRA, on the user's model and data."""

from __future__ import annotations

from typing import Any

import click

from layercard.cli.help import Command, examples
from layercard.cli.options import (
    CONTEXT,
    IntegerList,
    data_options,
    data_source,
    model_options,
    model_source,
    output_options,
    settings_options,
    target_modules,
)
from layercard.cli.output import Output, starting
from layercard.study.settings import StudySettings

FEWEST_ROUNDS = 6
"""Fewer give no interval of 95%."""
COMMON = ("layers_path", "other_stacks", "random_seed")
"""Settings that hold for every set of layers."""


@click.command(
    cls=Command,
    context_settings=CONTEXT,
    epilog=examples(
        "layercard measure ./model --dataset data.jsonl --sweep 2,4,8",
        "layercard measure ./model --dataset data.jsonl --layers 20,21 --layers high",
        "layercard measure ./model --dataset data.jsonl --layers placement.json",
    ),
)
@model_options
@data_options(required=True)
@click.option(
    "--layers",
    multiple=True,
    metavar="LAYERS",
    help="What `lora_layers` takes: a list, a strategy, a placement.json, a mapping; may be repeated.",
)
@click.option("--sweep", type=IntegerList(), help="Measure these numbers of layers, such as `2,4,8`.")
@click.option("--strategy", metavar="NAME", help="Which layers `--sweep` takes.  [default: last]")
@settings_options(COMMON)
@click.option("--rank", type=click.IntRange(min=1), default=16, show_default=True, help="LoRA's rank.")
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True, help="Rows of a step.")
@click.option(
    "--gradient-checkpointing/--no-gradient-checkpointing", default=True, show_default=True, help="As in training."
)
@click.option(
    "--rounds",
    type=click.IntRange(min=FEWEST_ROUNDS),
    default=16,
    show_default=True,
    help="Timed steps of each set of layers, alternating.",
)
@click.option("--inference", is_flag=True, help="Time answers with unmerged adapters as well.")
@click.option(
    "--new-tokens", type=click.IntRange(min=2), default=32, show_default=True, help="Of an answer, with --inference."
)
@output_options
@click.pass_context
def measure(context: click.Context, as_json: bool, **values: Any) -> None:
    """Measure what training steps of MODEL (a folder or a Hub id) cost on chosen layers beside all layers.

    Trains a few steps of each in turn, on the same batches, and keeps nothing of it. Quality is not measured.
    """
    from layercard.cli.asked_layers import asked_layers

    asked = asked_layers(values["layers"], values["sweep"], values["strategy"], {name: values[name] for name in COMMON})
    with starting():
        from layercard.cli.measuring import MeasureAsked, run_measure

    output, rank = Output(as_json=as_json), values["rank"]
    targets = target_modules(values)
    settings = StudySettings(
        rank=rank,
        alpha=2 * rank,
        steps=1,
        batch_size=1,  # a row of the trainer's is a whole batch
        target_modules=None if targets is None else tuple(targets),
        gradient_checkpointing=values["gradient_checkpointing"],
        cost_rounds=values["rounds"],
        probe_ranks=(rank,),
    ).validated()
    new_tokens = values["new_tokens"] if values["inference"] else 0
    run = MeasureAsked(model_source(values), data_source(values), asked, settings, values["batch_size"], new_tokens)
    output.finish(run_measure(run, output, context))
