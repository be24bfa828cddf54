"""Reuses the placement that an earlier run saved, so that a resumed run trains the layers it trained before.

Where placement.json stands in the output directory, or beside the checkpoint to resume from, it is the placement, and
nothing is probed; settings that contradict it are an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from layercard.anatomy.layers import describe
from layercard.errors import SettingsError
from layercard.placement.placement import LayerPlacement
from layercard.settings import PlacementSettings

if TYPE_CHECKING:
    from layercard.hosts.protocol import Host

NAME = "placement.json"
GUARDED = "guard"
"""The strategy of a placement that the guard chose in place of the one asked for; no setting contradicts it."""


def saved_placement(host: Host, settings: PlacementSettings, num_layers: int) -> LayerPlacement | None:
    """Return the placement that an earlier run saved where this one writes or resumes from, or None.

    A checkpoint's own placement, or that of its parent folder, goes before the output directory's. Raises
    `PlacementError` where the file does not fit the model, `SettingsError` where settings contradict it.
    """
    for folder in _folders(host):
        path = folder / NAME
        if path.is_file():
            placement = LayerPlacement.load(path).fit(num_layers)
            _refuse_conflict(placement, settings, path)
            return placement
    return None


def is_resuming(host: Host) -> bool:
    """Whether the trainer's arguments name a checkpoint to resume from."""
    return bool(host.trainer.args.resume_from_checkpoint)


def _folders(host: Host) -> Iterator[Path]:
    named = host.trainer.args.resume_from_checkpoint
    if isinstance(named, str) and named.lower() not in {"true", "false"}:  # scripts pass a flag through as text
        checkpoint = Path(named)
        yield checkpoint
        yield checkpoint.parent
    yield host.output_dir


def _refuse_conflict(placement: LayerPlacement, settings: PlacementSettings, path: Path) -> None:
    if placement.strategy == GUARDED:
        return
    for field, asked in _conflicts(placement, settings):
        raise SettingsError(
            f"`{field}` is {asked}, and {path} from an earlier run holds "
            f"{describe(placement.layers, placement.num_layers)} (strategy `{placement.strategy}`, score "
            f"{placement.score}), which a resumed run has to keep. To go on with it, drop `{field}`; to place anew, delete "
            "that file or give another output directory."
        )


def _conflicts(placement: LayerPlacement, settings: PlacementSettings) -> Iterator[tuple[str, object]]:
    """Yield each setting that the saved placement contradicts."""
    count, depth = len(placement.layers), len(placement.every_layer)
    if settings.indices is not None and tuple(sorted(settings.indices)) != placement.layers:
        yield "indices", settings.indices
    if settings.placement_path is not None:
        named = LayerPlacement.load(settings.placement_path)
        if named.digest() != placement.digest():
            yield "lora_layers", settings.lora_layers
    if settings.strategy is not None and settings.strategy != placement.strategy:
        yield "strategy", repr(settings.strategy)
    if settings.score is not None and settings.score != placement.score:
        yield "score", repr(settings.score)
    if settings.num_layers is not None and settings.num_layers != count:
        yield "num_layers", settings.num_layers
    if settings.fraction is not None and abs(settings.fraction * depth - count) > 1:
        yield "fraction", settings.fraction
    if settings.other_stacks is not None and placement.other_stacks not in (None, settings.other_stacks):
        yield "other_stacks", repr(settings.other_stacks)
    if settings.min_entry > placement.entry:
        yield "min_entry", settings.min_entry
