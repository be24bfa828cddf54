"""Probes a model on a dataset for a command: load, read, probe, score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from layercard.anatomy.adaptable import layers_holding
from layercard.cli.loading import load_config, load_model, load_tokenizer, settled, skeleton
from layercard.cli.options import DataSource, ModelSource
from layercard.cli.output import Output
from layercard.cli.positions import longest_input
from layercard.cli.tasks import Purpose, unread_labels
from layercard.data import LABELLED, Labels, ProbeData, SavedHead, probe_data
from layercard.data.batches import dataset_labels
from layercard.pipeline.before.looking import locate_layers
from layercard.pipeline.before.record import model_facts
from layercard.probing.run import run_probe
from layercard.probing.statistics import LayerStatistics
from layercard.records import first_record
from layercard.registry import Extensions
from layercard.scores.base import LayerScores, checked, needs_of, numbers
from layercard.scores.resnorm import pooled_energy
from layercard.settings import PlacementSettings

BATCH_SIZE = 8
"""Examples a batch where `probe_batch_size` is not given: no trainer says."""


@dataclass(frozen=True)
class Given:
    """What a command was given, and what plugins supply to it."""

    model: ModelSource
    data: DataSource
    settings: PlacementSettings
    targets: list[str] | None
    """The names of target modules; None: every linear module."""
    extensions: Extensions
    output: Output


@dataclass(frozen=True)
class Examined:
    """What a probe measured, and the scores made of it by name."""

    statistics: LayerStatistics
    scores: dict[str, LayerScores]
    model: dict[str, Any]
    """What tells the model from others."""

    def energies(self) -> list[float | None] | None:
        """Return each layer's activation energy per dimension, the mean over its target modules; None if not measured.

        None in the list where a layer holds none.
        """
        return None if self.statistics.energy is None else numbers(pooled_energy(self.statistics))

    def document(self) -> dict[str, Any]:
        """Return what `layercard probe --json` prints."""
        s, energies = self.statistics, self.energies()
        scores = {name: found.to_dict() for name, found in self.scores.items()}
        unread = "no score in use reads it"
        return {
            "model": s.model,
            "num_layers": s.num_layers,
            "scores": scores,
            "activation_energy": energies,
            "probe": {"seconds": s.seconds, "examples": s.examples, "tokens": s.tokens},
            "target_modules": list(s.targets),
            "left_out": list(s.left_out),
            "notes": list(s.notes),
            "unavailable": {} if energies is not None else {"activation_energy": unread},
        }


def examine(given: Given, scores: Sequence[str], *, loaded: nn.Module | None = None) -> Examined:
    """Return statistics and scores; unknown scores, layers and modules are refused before anything is loaded.

    `loaded` is the model where it was loaded already.
    """
    settings, extensions, targets = given.settings, given.extensions, given.targets
    known = [extensions.scorers[name] for name in scores]
    model = settled(given.model, given.data, given.output.say)
    bare = skeleton(model.name, model.purpose) if loaded is None else loaded
    layers_holding(bare, locate_layers(bare, settings.layers_path, extensions), targets)
    examples = read_examples(replace(given, model=model), bare)
    loaded = load_model(model, given.output.say) if loaded is None else loaded
    stack = locate_layers(loaded, settings.layers_path, extensions)
    facts = model_facts(loaded, stack)
    statistics = run_probe(
        loaded,
        examples.batches,
        stack=stack,
        needs=needs_of(scores, extensions.scorers),
        rank=settings.probe_rank,
        seed=settings.random_seed,
        target_modules=targets,
    )
    return Examined(statistics, {s.name: checked(s.score(statistics), statistics) for s in known}, facts)


def read_examples(given: Given, bare: nn.Module) -> ProbeData:
    """Return the batches that a settled model is probed on; what a person should know of them is said.

    `bare` is the model, with or without weights.
    """
    model, data, settings, output = given.model, given.data, given.settings, given.output
    purpose = model.purpose
    assert purpose is not None  # the model is settled
    task, labels = purpose.task, _labels(model.name, purpose, data, output)
    if data.columns == {} and (line := unread_labels(_first(data), task)):
        output.say(line)
    tokenizer = load_tokenizer(model.name, purpose, output.say)
    examples = probe_data(
        data.name,
        tokenizer,
        task=task if labels is None else labels.task,
        examples=settings.probe_examples,
        batch_size=settings.probe_batch_size or BATCH_SIZE,
        max_length=longest_input(bare, tokenizer, wanted=data.max_length),
        seed=settings.random_seed,
        columns=data.columns,
        split=data.split,
        config=data.config,
        labels=labels,
        tokenize=given.extensions.tokenize_examples,
    )
    if examples.skipped:
        output.say(f"{examples.skipped} sampled examples hold nothing to learn within the length and were left out.")
    return examples


def _labels(name: str, purpose: Purpose, data: DataSource, output: Output) -> Labels | None:
    """Return what the labels are to a classifier: decided already for a new head, else read for the saved one."""
    if purpose.labels is not None or purpose.task not in LABELLED:
        return purpose.labels
    saved = SavedHead.of(load_config(name))
    asked = None if purpose.task == "classification" and saved.task is None else purpose.task
    labels = dataset_labels(
        data.name, _first(data), task=asked, saved=saved, columns=data.columns, split=data.split, config=data.config
    )
    if labels.shown:
        output.say(labels.shown)
    return labels


def _first(data: DataSource) -> Any:
    return first_record(data.name, split=data.split, config=data.config)
