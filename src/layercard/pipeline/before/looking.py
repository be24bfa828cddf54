"""Looks at a run's data through the probe: the score that a choice reads, or a mere look where no score decides.

Where a score decides, what keeps it from being computed is an error. Where none does, it is a line to say, and the choice goes
on by depth; only what would keep training itself from working (`UntrainableError`) still stops the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from layercard.anatomy.checkpoint_names import is_checkpointing
from layercard.anatomy.layers import find_layers
from layercard.errors import DataError, HostError, ModelError, ProbeError, UntrainableError
from layercard.pipeline.before.room import probed_where_it_fits, ways_out
from layercard.probing.run import run_probe
from layercard.ranks import meet, together
from layercard.registry import Extensions
from layercard.scores.base import checked

if TYPE_CHECKING:
    from torch import nn

    from layercard.anatomy.layers import LayerStack
    from layercard.hosts.protocol import Host
    from layercard.probing.statistics import LayerStatistics
    from layercard.scores.base import LayerScores
    from layercard.settings import PlacementSettings

CANNOT_LOOK = (DataError, HostError, ModelError, ProbeError)
"""What a look may fail with; a mistake in settings or plugins is never passed over."""


@dataclass(frozen=True)
class RunToPlace:
    """A run whose layers are to be chosen."""

    host: Host
    settings: PlacementSettings
    stack: LayerStack
    extensions: Extensions
    target_modules: Sequence[str] | None = None
    """Suffixes that stand in for adapters where the model has none yet."""
    adaptable: tuple[int, ...] | None = None
    """The layers that have adapters, or will have them; None: every layer."""


@dataclass(frozen=True)
class Seen:
    """What a look found; `failure` says in one line why it found nothing."""

    statistics: LayerStatistics | None = None
    scores: Mapping[str, LayerScores] = field(default_factory=dict)
    failure: str | None = None


def locate_layers(model: nn.Module, path: str | None, extensions: Extensions) -> LayerStack:
    """Return the model's layers: by `path` where given, else as the first plugin answers."""
    return extensions.locate_decoder_layers(model) if path is None else find_layers(model, path=path)


def look(run: RunToPlace, name: str, *, examples: int, in_shards: bool = True) -> Seen:
    """Return the score `name` of the run's model on at most `examples` of its examples; raise where it is undefined.

    `in_shards` says whether a model that no device holds whole is probed in shards. Where it fails on one rank, it raises on
    every rank.
    """
    with together():
        return _look(run, name, examples, in_shards=in_shards)


def _look(run: RunToPlace, name: str, examples: int, *, in_shards: bool) -> Seen:
    host, settings = run.host, run.settings
    _refuse_zero3(host)
    batches = host.probe_batches(examples, settings.probe_batch_size, settings.random_seed)

    def probe(model: nn.Module, stack: LayerStack) -> LayerStatistics:
        return run_probe(
            model,
            batches,
            stack=stack,
            needs=run.extensions.scorers[name].needs,
            loss=host.loss,
            objective=host.objective,
            target_modules=run.target_modules,
            rank=settings.probe_rank,
            seed=settings.random_seed,
            checkpointing=is_checkpointing(host.trainer.args),
        )

    statistics = probed_where_it_fits(host, run.stack, probe, in_shards=in_shards)
    return Seen(statistics, {name: checked(run.extensions.scorers[name].score(statistics), statistics)})


def glance(run: RunToPlace, name: str, *, examples: int) -> Seen:
    """Return the same where no score decides: what keeps it from being computed is told, not raised.

    A model that no device holds whole is not looked at: in shards, what one rank cannot run keeps the others waiting, and could
    not be passed over. Raises `UntrainableError` where training itself would fail or learn nothing.
    """
    meet()  # what failed on another rank before is not passed over here
    try:
        return look(run, name, examples=examples, in_shards=False)
    except UntrainableError:
        raise
    except CANNOT_LOOK as error:
        return Seen(failure=without_a_look(error))


def without_a_look(error: Exception) -> str:
    """Return the line to say where the choice goes on by depth after `error`."""
    found = str(error).split(". ", 1)[0].rstrip(".")
    return f"Chosen by depth without a look at the data, which no score needs here: {found}."


def _refuse_zero3(host: Host) -> None:
    """Refuse runs under ZeRO-3 whose model is whole as yet: DeepSpeed has changed torch's functions for partitioned weights."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    if is_deepspeed_zero3_enabled():
        raise HostError(
            "The run uses DeepSpeed ZeRO-3, under which the model cannot be probed: its weights are partitioned, or will be, "
            f"and layers run only inside DeepSpeed's engine. ZeRO-1 and ZeRO-2 work. {ways_out(host)}"
        )
