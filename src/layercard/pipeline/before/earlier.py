"""What `place` finds of an earlier `place`: on the same trainer, or on the model of another trainer.

A trainer is placed once: the same call gives the same run. A model that an earlier trainer's `place` narrowed, and that
nobody trained since, gets its shed adapters back before it is placed anew, so that baseline and trial are not lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from layercard.anatomy.adapters import adds_nothing
from layercard.anatomy.layers import describe
from layercard.errors import HostError, ModelError
from layercard.settings import PlacementSettings

if TYPE_CHECKING:
    from torch import nn

    from layercard.anatomy.narrow import Narrowing
    from layercard.pipeline.placed_run import PlacedRun

_narrowings: WeakKeyDictionary[nn.Module, Narrowing] = WeakKeyDictionary()
"""The narrowing in force of every model that was placed; a narrowing holds parts of its model, never the whole."""


def remember(model: nn.Module, narrowing: Narrowing) -> None:
    """Note that `narrowing` is in force in `model`."""
    _narrowings[model] = narrowing


def same_run(run: PlacedRun, wanted: PlacementSettings) -> PlacedRun:
    """Return the run of a trainer that was placed already; raise `HostError` where something else is asked of it now."""
    trainer = run.host.trainer
    placed = describe(run.layers, run.placement.num_layers)
    if trainer.accelerator.unwrap_model(trainer.model) is not run.model:
        raise HostError(
            f"This trainer was placed already ({placed}), and its model was replaced since. Build the trainer anew with the "
            "model that is to train, and call `place` on it."
        )
    before, now = _spelled_out(run.settings), _spelled_out(wanted)
    changed = [name for name in before if before[name] != now[name]]
    if changed:
        told = "; ".join(f"`{name}` was {before[name]!r} and is {now[name]!r}" for name in changed)
        what = "a new trainer" if adds_nothing(run.model) else "a model with fresh adapters and a new trainer"
        raise HostError(
            f"This trainer was placed already ({placed}), with other settings: {told}. A trainer is placed once. To train as "
            f"placed, call `train()`; to place otherwise, build {what} and call `place` on that."
        )
    return run


@contextmanager
def all_adapters_back(model: nn.Module, *, resuming: bool) -> Iterator[None]:
    """Give a model that an earlier `place` narrowed its shed adapters back; narrow it again where the block fails.

    Raises `ModelError` where it was trained since, unless a checkpoint's values are about to be loaded.
    """
    earlier = _narrowings.get(model)
    if earlier is None or not earlier.in_force:
        yield
        return
    if not resuming and not adds_nothing(model):
        raise ModelError(
            f"The model was placed by an earlier trainer (layers {list(earlier.layers)}) and trained since, so its adapters are "
            "no longer those that a run starts from. To go on training it, call `train()` of that trainer, or resume from "
            "its checkpoint. To place anew, build the model with fresh adapters."
        )
    earlier.undo()
    try:
        yield
    except BaseException:
        earlier.redo()
        raise


def _spelled_out(settings: PlacementSettings) -> dict[str, Any]:
    """The settings, those alike that a user can write in several ways."""
    held = {field.name: getattr(settings, field.name) for field in fields(settings)}
    held["lora_layers"] = None if settings.placement_path is None else str(settings.placement_path)
    return held | {"indices": None if settings.indices is None else sorted(settings.indices)}
