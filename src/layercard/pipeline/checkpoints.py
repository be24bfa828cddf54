"""Compares the adapters of the checkpoint that a run resumes from with the live ones.

PEFT loads a checkpoint placed on other layers without a word, and the trainer does not tell callbacks where it
resumed from. So `LoadedAdapters` looks on when the model loads a state, and `check` judges when training begins.
"""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layercard.anatomy.layers import LayerStack, describe
from layercard.anatomy.verify import check_checkpoint
from layercard.errors import PlacementError

if TYPE_CHECKING:
    from torch import nn

    from layercard.hosts.protocol import Host


class LoadedAdapters:
    """Watches `model` load states; its one hook only reads, and goes when this object goes."""

    def __init__(self, model: nn.Module, stack: LayerStack) -> None:
        self._stack = stack
        self._missing: list[str] = []
        self._unexpected: list[str] = []
        self._seen = False
        watcher = weakref.WeakMethod(self._note)
        handle = model.register_load_state_dict_post_hook(
            lambda module, keys: None if (note := watcher()) is None else note(keys)
        )
        weakref.finalize(self, handle.remove)

    def _note(self, keys: Any) -> None:
        self._seen = True
        self._missing = [name for name in keys.missing_keys if ".lora_" in name]
        self._unexpected = [name for name in keys.unexpected_keys if ".lora_" in name]

    def check(self, host: Host, global_step: int) -> None:
        """Raise `PlacementError` where the state loaded last holds other adapters than the model."""
        if not self._seen:
            checkpoint = Path(host.output_dir) / f"checkpoint-{global_step}"
            if checkpoint.is_dir():
                check_checkpoint(checkpoint, host.model, self._stack)
            return
        if self._missing or self._unexpected:
            raise PlacementError(
                f"The checkpoint that this run resumes from was placed on other layers: {self._told()}. PEFT would train "
                "some adapters from scratch and drop others. Resume with the placement.json of the run that wrote it, or "
                "start anew in another output directory."
            )

    def _told(self) -> str:
        parts = []
        for names, what in (
            (self._missing, "it has no adapters for"),
            (self._unexpected, "it has adapters for"),
        ):
            layers = {self._stack.layer_of(name) for name in names} - {None}
            if layers:
                suffix = "" if what.endswith("no adapters for") else ", which this run leaves frozen"
                parts.append(f"{what} {describe(layers, len(self._stack))}{suffix}")
            elif names:
                parts.append(f"{what} `{names[0]}`")
        return " and ".join(parts)
