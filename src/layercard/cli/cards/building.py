"""Loads what `layercard cards build` needs, builds the card, checks it and writes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from layercard import plugins
from layercard.cards.card import LayerCard
from layercard.cards.fingerprint import model_fingerprint
from layercard.cards.library import save_card
from layercard.cli.loading import load_config, load_model, load_tokenizer, settled, skeleton
from layercard.cli.next_steps import say_command
from layercard.cli.options import DataSource, ModelSource
from layercard.cli.output import Output
from layercard.cli.positions import longest_input
from layercard.cli.writable import refuse_unwritable
from layercard.data import LABELLED, Labels, SavedHead
from layercard.data.batches import dataset_labels
from layercard.errors import ModelError
from layercard.pipeline.before.looking import locate_layers
from layercard.records import column_values, first_record
from layercard.study.adapting import refuse_without_adapters
from layercard.study.build import StudyModel, build_card
from layercard.study.examples import check_readable
from layercard.study.settings import StudyData, StudySettings


def make_card(
    source: ModelSource,
    data: StudyData,
    settings: StudySettings,
    names: Mapping[str, str | None],
    *,
    output: Path | None,
    work: Path | None,
    command: Sequence[str],
    said: Output,
    max_length_given: bool,
) -> dict[str, Any]:
    """Return the document of the card, written to `output`; `names` are `model_id`, `model_revision` and `gguf`."""
    source = settled(source, DataSource(data.train, data.config, data.split, dict(data.columns), None), said.say)
    assert source.purpose is not None  # it is settled
    tokenizer, task = load_tokenizer(source.name, source.purpose, said.say), source.purpose.task
    task = "classification" if task == "regression" else task  # one number is learned and judged as a class is
    refuse_without_adapters(task)
    data = replace(data, labels=_labels(source, data))
    wanted = settings.max_length if max_length_given else None
    longest = longest_input(skeleton(source.name, source.purpose), tokenizer, wanted=wanted)
    settings = replace(settings, max_length=min(settings.max_length, longest))
    extensions = plugins.extensions()
    check_readable(data, tokenizer, task, settings, tokenize=extensions.tokenize_examples)
    base = load_model(source, said.say)
    facts = model_fingerprint(
        base,
        stack=locate_layers(base, None, extensions),
        model_id=names["model_id"],
        revision=names["model_revision"],
        gguf=names["gguf"],
    )
    key = LayerCard({"model": facts, "dataset": {"id": data.id}}, "").key
    path = output or Path(f"{key}.json")
    parts = work or path.with_suffix(".parts")
    refuse_unwritable(path, "--output")
    said.say(f"Building the Layer Card {key}; finished parts are kept in {parts}.")
    model = StudyModel(base, tokenizer, task, facts)
    document = build_card(model, data, settings, work=parts, extensions=extensions, command=command, say=said.say)
    save_card(LayerCard(document, str(path)), path)
    said.say(f"Wrote {path}.")
    _say_next(said, LayerCard(document, str(path)), path)
    return document


def _say_next(said: Output, card: LayerCard, path: Path) -> None:
    """Say what the card is good for, which its status decides."""
    if card.document.get("quick"):
        said.say("A quick card only shows that it can be built; `auto` never asks it.")
        say_command(said, "see it.", "layercard", "cards", "show", str(path))
        return
    if card.status != "reproduced":
        said.say("It was measured once: `auto` asks it with `--community-cards`, and without once it is reproduced.")
    say_command(said, "see what each set of layers kept and cost.", "layercard", "cards", "show", str(path))
    say_command(said, "let `auto` ask it.", "layercard", "cards", "add", str(path))


def _labels(source: ModelSource, data: StudyData) -> Labels | None:
    """Return how the labels are read by the classifier that was saved; every one is read once, before weights are loaded."""
    purpose = source.purpose
    assert purpose is not None  # the source is settled
    if purpose.task not in LABELLED:
        return None
    record = first_record(data.train, split=data.split, config=data.config)
    saved = SavedHead.of(load_config(source.name))
    labels = dataset_labels(data.train, record, saved=saved, columns=data.columns, split=data.split, config=data.config)
    if purpose.labels is not None or labels.task == "multi-label":
        what = "was saved without a classifier" if purpose.labels is not None else "predicts several classes at once"
        raise ModelError(
            f"The model {source.name} {what}; cards are built for causal language models and for classifiers of one class or "
            "number with the head that was saved."
        )
    for name, split in ((data.train, data.split), (data.heldout, data.heldout_split)):
        for place, value in column_values(name, labels.column, split=split, config=data.config):
            labels.read(value, place)
    return labels
