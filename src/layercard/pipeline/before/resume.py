"""Reuses the placement of the run that is resumed, so that it trains the layers it trained before.

A run resumes where its trainer's arguments name a checkpoint (`resume_from_checkpoint`). Then the placement.json in the
checkpoint, or else beside it, is the placement, and nothing is probed. Where it was chosen for another model, another
stack or other modules, or where settings contradict it, that is an error that names both sides; other data, and settings
that are no longer given, are named and change nothing. A run that does not resume chooses anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.trainer_utils import get_last_checkpoint

from layercard.anatomy.layers import describe
from layercard.errors import PlacementError, SettingsError
from layercard.files import remove_left_over
from layercard.placement.made_for import (
    SEEN_IN_LAYERS,
    Difference,
    data_difference,
    model_differences,
    same_precision,
    setting_differences,
    stack_difference,
    target_difference,
    unread_settings,
)
from layercard.placement.placement import LayerPlacement
from layercard.settings import PlacementSettings

if TYPE_CHECKING:
    from layercard.hosts.protocol import Host

NAME = "placement.json"
GUARDED = "guard"
"""The strategy of a placement that the guard chose in place of the one asked for; no setting contradicts it."""
ANEW = (
    "To place anew, start without `resume_from_checkpoint` (or what sets it by itself, such as "
    "`auto_resume_from_checkpoints`), in another output directory if the checkpoints are to stay."
)


@dataclass(frozen=True)
class Earlier:
    """The placement of the run that is resumed, and what differs since without mattering to it, a line each."""

    placement: LayerPlacement
    path: Path
    notes: tuple[str, ...] = ()


def resumed_placement(host: Host, settings: PlacementSettings, record: Mapping[str, Any]) -> Earlier | None:
    """Return the placement that a resumed run has to keep; None where the run does not resume, or left none behind.

    `record` is what this run's layers would be chosen for. Raises `PlacementError` where the file does not fit the model,
    `SettingsError` where settings contradict it.
    """
    checkpoint = checkpoint_folder(host)
    if checkpoint is not None:
        remove_left_over(checkpoint)  # no later write there would
    path = next((folder / NAME for folder in _folders(host) if (folder / NAME).is_file()), None)
    if path is None:
        return None
    placement = LayerPlacement.load(path).fit(record["model"]["num_layers"])
    notes = _compared(placement, path, record) if placement.made_for is not None else []
    if placement.strategy != GUARDED:
        _refuse_conflict(placement, settings, path)
        notes += _other_settings(placement, path, record)
    return Earlier(placement, path, tuple(notes))


def is_resuming(host: Host) -> bool:
    """Whether the trainer's arguments name a checkpoint to resume from."""
    named = host.trainer.args.resume_from_checkpoint
    return bool(named) and str(named).lower() != "false"  # scripts pass a flag through as text


def checkpoint_folder(host: Host) -> Path | None:
    """Return the checkpoint that the arguments name, the last one of the output directory where they say no more; or None."""
    if not is_resuming(host):
        return None
    named = host.trainer.args.resume_from_checkpoint
    if str(named).lower() != "true":
        return Path(named)
    last = get_last_checkpoint(str(host.output_dir)) if host.output_dir.is_dir() else None
    return None if last is None else Path(last)


def replaced_placement(host: Host, placement: LayerPlacement) -> str | None:
    """Return a line for people where an earlier run's placement.json with other layers is about to be written over."""
    path = host.output_dir / NAME
    if is_resuming(host) or not path.is_file():
        return None
    try:
        earlier = LayerPlacement.load(path)
    except PlacementError:
        return f"{path}, which cannot be read, is replaced."
    if earlier.digest() == placement.digest():
        return None
    return (
        f"{path} of an earlier run ({describe(earlier.layers, earlier.num_layers)}, strategy `{earlier.strategy}`) is replaced: "
        "this run does not resume. To go on with that run, name its checkpoint in the trainer's `resume_from_checkpoint`."
    )


def check_made_for(placement: LayerPlacement, path: Path, record: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a line where a placement that the user named was chosen for another model; nothing where it has no record.

    Raises `PlacementError` where it was chosen for another stack of layers. What it was chosen on (data, settings, target
    modules) is the user's to decide.
    """
    if placement.made_for is None:
        return ()
    stack = stack_difference(placement.made_for, record)
    if stack is not None:
        raise PlacementError(
            f"{path} was chosen for another stack: {stack}. Layers of one stack say nothing of another's. Choose for this one "
            "with `layercard plan`, or give the `layers_path` that it was chosen for."
        )
    return tuple(
        f"{path} was chosen for another model: {found}. Its layers are taken all the same."
        for found in model_differences(placement.made_for, record)
    )


def _folders(host: Host) -> Iterator[Path]:
    """The folders in which the placement of the resumed run may stand."""
    checkpoint = checkpoint_folder(host)
    if checkpoint is not None:
        yield checkpoint
        yield checkpoint.parent
    if is_resuming(host):
        yield host.output_dir


def _compared(placement: LayerPlacement, path: Path, record: Mapping[str, Any]) -> list[str]:
    """Refuse what makes the resumed run another one; return lines about the data and about packed weights."""
    then = placement.made_for or {}
    models = list(model_differences(then, record))
    apart = models if same_precision(then, record) else []
    for found in (stack_difference(then, record), *apart, target_difference(then, record)):
        if found is not None:
            raise PlacementError(
                f"{path} was chosen for another run: {found}. A resumed run keeps its model, its stack and what LoRA adapts. "
                f"Put them back to go on with it. {ANEW}"
            )
    data = data_difference(then, record)
    told = [*(models if not apart else []), *([data] if data is not None else [])]
    return [f"Since the layers were chosen, {found}; a resumed run keeps its layers." for found in told]


def _other_settings(placement: LayerPlacement, path: Path, record: Mapping[str, Any]) -> list[str]:
    """Refuse settings given now that the choice was made without; return a line about those no longer given."""
    if placement.made_for is None:
        return []
    unread = unread_settings(placement.strategy, placement.score, placement.cards) | SEEN_IN_LAYERS
    defaults = {field.name: field.default for field in fields(PlacementSettings)}
    dropped: list[Difference] = []
    for found in setting_differences(placement.made_for, record, unread):
        name = found.field.strip("`")
        if found.now == defaults.get(name):
            dropped.append(found)
            continue
        raise SettingsError(
            f"{found.field} is {found.now!r}, and {path} was chosen with {found.then!r}: "
            f"{describe(placement.layers, placement.num_layers)}, which a resumed run has to keep. To go on with it, put "
            f"{found.field} back or drop it. {ANEW}"
        )
    return [f"Since the layers were chosen, {found}; a resumed run keeps its layers." for found in dropped]


def _refuse_conflict(placement: LayerPlacement, settings: PlacementSettings, path: Path) -> None:
    for field, asked in _conflicts(placement, settings):
        raise SettingsError(
            f"`{field}` is {asked}, and {path} holds {describe(placement.layers, placement.num_layers)} (strategy "
            f"`{placement.strategy}`, score {placement.score}), which a resumed run has to keep. To go on with it, drop "
            f"`{field}`, or give `lora_layers: auto` alone. {ANEW}"
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
