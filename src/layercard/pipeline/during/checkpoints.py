"""Compares the adapters of the checkpoint that a run resumes from with the live ones, and leaves its placement in it.

PEFT loads a checkpoint placed on other layers without a word, and the trainer tells callbacks where it resumed from only
after optimizer and scheduler were loaded. So `LoadedAdapters` looks on when the model is given a state, and stops `train()`
there: nothing is loaded yet. What it cannot see (states loaded shard by shard) `check` judges when training begins.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layercard.anatomy.adapters import sole_adapter
from layercard.anatomy.checkpoint_file import has_adapter_file
from layercard.anatomy.layers import LayerStack, describe
from layercard.anatomy.verify import adapted_modules, check_checkpoint, loaded_modules
from layercard.errors import PlacementError
from layercard.pipeline.before.resume import NAME

if TYPE_CHECKING:
    from torch import nn

    from layercard.hosts.protocol import Host
    from layercard.placement.placement import LayerPlacement


class LoadedAdapters:
    """Watches the model of `host` being given states; its one hook only reads, and goes when this object goes."""

    def __init__(self, host: Host, stack: LayerStack) -> None:
        model = host.model
        self._stack, self._trainer = stack, weakref.ref(host.trainer)
        self._adapter = sole_adapter(model)
        self._wrong: str | None = None
        self._seen = False
        self.begun = False
        """Whether the training under way is past the loading of its checkpoint."""
        watcher = weakref.WeakMethod(self._note)
        handle = model.register_load_state_dict_pre_hook(
            lambda module, state, *_: None if (note := watcher()) is None else note(module, state)
        )
        weakref.finalize(self, handle.remove)

    def _note(self, model: nn.Module, state: Mapping[str, Any]) -> None:
        loaded = loaded_modules(state, self._adapter)
        if not loaded:  # another adapter beside the one that trains, or base weights
            return
        live = adapted_modules((name for name, _ in model.named_parameters()), self._adapter)
        self._seen = True
        self._wrong = None if loaded == live else self._told(loaded, live)
        trainer = self._trainer()
        if self._wrong is not None and trainer is not None and trainer.is_in_train and not self.begun:
            raise PlacementError(self._wrong)

    def check(self, host: Host, global_step: int) -> None:
        """Raise `PlacementError` where the state loaded last holds other adapters than the model."""
        if self._wrong is not None:
            raise PlacementError(self._wrong)
        checkpoint = Path(host.output_dir) / f"checkpoint-{global_step}"
        if not self._seen and checkpoint.is_dir():
            check_checkpoint(checkpoint, host.model, self._stack)

    def _told(self, loaded: set[str], live: set[str]) -> str:
        parts = [
            self._missing(live - loaded, "it has no adapters for", ""),
            self._missing(loaded - live, "it has adapters for", ", which this run leaves frozen"),
        ]
        layers = sorted({layer for name in loaded if (layer := self._stack.layer_of(name)) is not None})
        return (
            f"The checkpoint that this run resumes from was placed on other layers: {' and '.join(p for p in parts if p)}. PEFT "
            "would train some adapters from scratch and drop others. To go on with it, name the checkpoint in the trainer's "
            f"arguments (`resume_from_checkpoint`) before `place`, which then takes the checkpoint's own {NAME}; or give "
            f"`lora_layers: {layers}`. Otherwise start anew, in another output directory."
        )

    def _missing(self, names: set[str], what: str, suffix: str) -> str:
        layers = {self._stack.layer_of(name) for name in names} - {None}
        if layers:
            return f"{what} {describe(layers, len(self._stack))}{suffix}"
        return f"{what} `{min(names)}`" if names else ""


def check_named_checkpoint(checkpoint: Path | None, model: Any, stack: LayerStack) -> None:
    """Raise `PlacementError` where the checkpoint that a run will resume from holds other adapters than the model.

    Asked before training, where the arguments name the checkpoint; one without an adapter file is the trainer's to judge.
    """
    if checkpoint is not None and has_adapter_file(checkpoint):
        check_checkpoint(checkpoint, model, stack)


def leave_placement(placement: LayerPlacement, args: Any, global_step: int) -> None:
    """Write placement.json into the checkpoint that was just saved, so that it can be resumed whatever comes after it."""
    checkpoint = Path(args.output_dir) / f"checkpoint-{global_step}"
    if args.should_save and checkpoint.is_dir():
        placement.save(checkpoint / NAME)
