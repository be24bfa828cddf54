"""Probes a model on a dataset for a command: load, read, probe, score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pluggy
from torch import nn

from layercard import plugins
from layercard.cli.loading import load_config, load_model, load_tokenizer, longest_input, task_of
from layercard.cli.options import DataSource, ModelSource
from layercard.cli.output import Output
from layercard.data import probe_data
from layercard.pipeline.probing import probe
from layercard.probing.statistics import LayerStatistics
from layercard.scores.base import LayerScores, checked, numbers
from layercard.scores.resnorm import pooled_energy
from layercard.settings import PlacementSettings

BATCH_SIZE = 8
"""Examples a batch where `probe_batch_size` is not given: no trainer says."""


@dataclass(frozen=True)
class Examined:
    """What a probe measured, and the scores made of it by name."""

    statistics: LayerStatistics
    scores: dict[str, LayerScores]

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


def examine(
    model: ModelSource,
    data: DataSource,
    settings: PlacementSettings,
    scores: Sequence[str],
    targets: list[str] | None,
    manager: pluggy.PluginManager,
    output: Output,
    *,
    loaded: nn.Module | None = None,
) -> Examined:
    """Return statistics and scores; unknown scores are refused before anything is loaded.

    `loaded` is the model where it was loaded already.
    """
    scorers = plugins.scorers(manager)
    known = [scorers[name] for name in scores]
    config = load_config(model.name)
    examples = probe_data(
        data.name,
        load_tokenizer(model.name),
        task=task_of(config, model.name),
        examples=settings.probe_examples,
        batch_size=settings.probe_batch_size or BATCH_SIZE,
        max_length=data.max_length or longest_input(config),
        seed=settings.random_seed,
        columns=data.columns,
        split=data.split,
        config=data.config,
    )
    if examples.skipped:
        output.say(f"{examples.skipped} sampled examples hold nothing to learn within the length and were left out.")
    statistics = probe(
        load_model(model) if loaded is None else loaded,
        examples.batches,
        scores=scores,
        layers_path=settings.layers_path,
        rank=settings.probe_rank,
        seed=settings.random_seed,
        manager=manager,
        target_modules=targets,
    )
    return Examined(statistics, {s.name: checked(s.score(statistics), statistics) for s in known})
