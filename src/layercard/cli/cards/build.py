"""`layercard cards build`: measure a Layer Card: probe, fine-tune every regime under one budget, judge on held-out data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from layercard import plugins
from layercard.cli.given import words_of
from layercard.cli.help import Command, examples
from layercard.cli.options import (
    CONTEXT,
    DataSource,
    IntegerList,
    data_options,
    data_source,
    model_options,
    model_source,
    output_options,
    target_modules,
)
from layercard.cli.output import Output, starting
from layercard.cli.writable import refuse_unwritable
from layercard.study.settings import StudyData, StudySettings

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)
GENERIC = {"train", "training", "data", "dataset"}
"""File names that say nothing of what is in them; the folder's name is taken instead."""
LEFT_OUT = {"output", "work", "as_json", "device"}
"""Options that say nothing of what was measured."""


def _number(name: str, text: str, kind: Any = int) -> Any:
    default = getattr(StudySettings, name)
    return click.option(f"--{name.replace('_', '-')}", name, type=kind, default=default, show_default=True, help=text)


def study_options(function: Any) -> Any:
    """Add the budget that every set of layers is trained under, and how it is judged."""
    for decorator in (
        click.option("--gradient-checkpointing", is_flag=True, help="Train and time with gradient checkpointing."),
        _number("cost_rounds", "Timed rounds of all sets, alternating."),
        click.option("--scores", metavar="NAME,…", help="Scores to record.  [default: all; see `layercard plugins`]"),
        _number("probe_seeds", "Probes at least, for the stability of the ranks."),
        _number("probe_batch_size", "Examples a probe batch."),
        _number("probe_examples", "Examples a probe reads."),
        _number("max_new_tokens", "Most tokens of a generated answer."),
        _number("generate", "Held-out examples with `references` to answer in full, for BLEU, chrF, TER and ROUGE."),
        _number("eval_batch_size", "Examples a batch on held-out data."),
        _number("heldout_examples", "Held-out examples that every set of layers is judged by."),
        click.option("--alpha", type=int, help="LoRA's alpha.  [default: twice the rank]"),
        _number("rank", "LoRA's rank."),
        click.option("--seeds", type=IntegerList(), default="0,1", show_default=True, help="A training from each."),
        _number("learning_rate", "Of AdamW, warmed up, then falling linearly.", float),
        _number("batch_size", "Examples a step."),
        _number("steps", "Optimizer steps of every training."),
    ):
        function = decorator(function)
    return function


@click.command(
    cls=Command,
    context_settings=CONTEXT,
    epilog=examples("layercard cards build ./model --dataset train.jsonl --heldout heldout.jsonl"),
)
@model_options
@click.option("--model-id", help="What the card calls the model.  [default: its Hub id, or its folder's name]")
@click.option("--model-revision", help="The revision of the model, where its files do not say.")
@click.option("--gguf", help="The quantization of the GGUF file that the weights came from, such as `Q4_K_M`.")
@data_options(required=True)
@click.option("--heldout", help="Held-out examples: a file or a Hub id.  [default: that of --dataset, another split]")
@click.option("--heldout-split", default="validation", show_default=True, help="Of a dataset on the Hub.")
@click.option(
    "--dataset-id",
    help="What the card calls the dataset.  [default: its Hub id, or its file's name; its folder's for `train` or `data`]",
)
@study_options
@click.option("--quick", is_flag=True, help="A smoke card of two steps, marked as such.")
@click.option("-o", "--output", type=FILE, help="Write the card here.  [default: MODEL/DATASET.json]")
@click.option("--work", type=FOLDER, help="Keep finished parts here.  [default: the card's path ending in .parts]")
@output_options
@click.pass_context
def build(
    context: click.Context, output: Path | None, work: Path | None, quick: bool, as_json: bool, **values: Any
) -> None:
    """Measure the Layer Card of MODEL (a folder or a Hub id) on a dataset.

    Probes the model, cuts its layers into regimes by resnorm, fine-tunes each regime, the placements that `auto` makes
    by depth and all layers under one budget, and records what each reached and cost. A build that was interrupted goes
    on where it stopped when the same command is given again.
    """
    refuse_unwritable(output, "--output")
    refuse_unwritable(work, "--work")
    settings = _settings(values, quick)
    for name in settings.scores or ():
        plugins.scorers(plugins.manager())[name]
    model, source = model_source(values), data_source(values)
    data = _data(values, source)
    with starting():
        from layercard.cli.cards.building import make_card

    said = Output(as_json=as_json)
    card = make_card(
        model,
        data,
        settings,
        {name: values[name] for name in ("model_id", "model_revision", "gguf")},
        output=output,
        work=work,
        command=words_of(context, but=LEFT_OUT),
        said=said,
        max_length_given=source.max_length is not None,
    )
    said.finish(card)


def _settings(values: dict[str, Any], quick: bool) -> StudySettings:
    names = (
        "steps", "batch_size", "learning_rate", "rank", "gradient_checkpointing", "heldout_examples", "eval_batch_size",
        "generate", "max_new_tokens", "probe_examples", "probe_batch_size", "probe_seeds", "cost_rounds",
    )  # fmt: skip
    targets, rank, scores = target_modules(values), values["rank"], values["scores"]
    settings = StudySettings(
        **{name: values[name] for name in names},
        seeds=tuple(values["seeds"]),
        alpha=values["alpha"] if values["alpha"] is not None else 2 * rank,
        target_modules=None if targets is None else tuple(targets),
        scores=None if scores is None else tuple(name.strip() for name in scores.split(",")),
        probe_ranks=tuple(sorted({*StudySettings.probe_ranks, rank})),
        max_length=values["max_length"] or StudySettings.max_length,
    )
    return (settings.smoke() if quick else settings).validated()


def _data(values: dict[str, Any], source: DataSource) -> StudyData:
    from layercard.cards.fingerprint import public_id

    file = Path(source.name).expanduser()
    local = public_id(source.name)
    if file.is_file():
        stem = file.name.split(".", 1)[0]
        local = file.resolve().parent.name if stem in GENERIC else stem
    heldout = values["heldout"]
    if heldout is None and file.is_file():
        raise click.UsageError("`--dataset` is a file, which has no splits. Give `--heldout` as well.")
    return StudyData(
        train=source.name,
        heldout=heldout or source.name,
        id=values["dataset_id"] or local,
        split=source.split,
        heldout_split=values["heldout_split"],
        config=source.config,
        columns=source.columns,
    )
