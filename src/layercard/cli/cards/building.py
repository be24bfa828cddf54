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
from layercard.cli.loading import load_config, load_model, load_tokenizer, longest_input, task_of
from layercard.cli.options import ModelSource
from layercard.cli.output import Output
from layercard.pipeline.probing import locate_layers
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
    config = load_config(source.name)
    if not max_length_given:
        settings = replace(settings, max_length=min(settings.max_length, longest_input(config)))
    tokenizer, task = load_tokenizer(source.name), task_of(config, source.name)
    check_readable(data, tokenizer, task, settings)
    base = load_model(source)
    manager = plugins.manager()
    facts = model_fingerprint(
        base,
        stack=locate_layers(base, None, manager),
        model_id=names["model_id"],
        revision=names["model_revision"],
        gguf=names["gguf"],
    )
    key = LayerCard({"model": facts, "dataset": {"id": data.id}}, "").key
    path = output or Path(f"{key}.json")
    parts = work or path.with_suffix(".parts")
    said.say(f"Building the Layer Card {key}; finished parts are kept in {parts}.")
    model = StudyModel(base, tokenizer, task, facts)
    document = build_card(model, data, settings, work=parts, manager=manager, command=command, say=said.say)
    save_card(LayerCard(document, str(path)), path)
    said.say(f"Wrote {path}.")
    return document
