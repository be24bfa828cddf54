"""`probe` and `score`, for those who have a model and batches and no trainer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from layercard import plugins
from layercard.pipeline.before.looking import locate_layers
from layercard.probing.labels import Objective
from layercard.probing.passes import Loss
from layercard.probing.run import run_probe
from layercard.scores.base import LayerScores, checked, needs_of

if TYPE_CHECKING:
    import pluggy
    from torch import nn

    from layercard.probing.statistics import LayerStatistics


def probe(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    scores: Sequence[str] = ("resnorm",),
    loss: Loss | None = None,
    objective: Objective = "model",
    target_modules: Sequence[str] | None = None,
    layers_path: str | None = None,
    rank: int = 8,
    seed: int = 0,
    checkpointing: bool | None = None,
    show_progress: bool = True,
    manager: pluggy.PluginManager | None = None,
) -> LayerStatistics:
    """Return the statistics that `scores` need, from one pass of `model` over `batches`.

    Parameters: `batches` are collated training batches with `input_ids` (rows, width) and `labels`; `loss(model, inputs)`
    returns the loss averaged over label terms, by default the model's own; `objective` is `own` where it is anything but a
    mean over the terms that the model's own loss has, and examples are then run one at a time; where the model has no adapters,
    `target_modules` (suffixes; default every linear module) and `rank` stand in for them. `checkpointing` None keeps the
    model's own gradient checkpointing. The model is left exactly as found, also when this fails.
    Raises `SettingsError` (unknown score), `LayersNotFoundError`, `ModelError`, `DataError`, `ProbeError`.
    """
    extensions = plugins.extensions(manager)
    return run_probe(
        model,
        batches,
        stack=locate_layers(model, layers_path, extensions),
        needs=needs_of(scores, extensions.scorers),
        loss=loss,
        objective=objective,
        target_modules=target_modules,
        rank=rank,
        seed=seed,
        checkpointing=checkpointing,
        show_progress=show_progress,
    )


def score(statistics: LayerStatistics, name: str, manager: pluggy.PluginManager | None = None) -> LayerScores:
    """Return the scores that the scorer `name` gives; raise `ProbeError` where they are undefined for a layer."""
    registry = plugins.scorers(manager or plugins.manager())
    return checked(registry[name].score(statistics), statistics)
