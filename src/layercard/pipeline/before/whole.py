"""Whether the checkpoint that a run resumes from was saved to its end, or its process was killed while it wrote.

transformers writes a checkpoint's files where they will stay, trainer_state.json last, so a checkpoint without a readable
one is half of one. It would fail in `train()`, after the probe, with an error that names a file and no way out.
"""

from __future__ import annotations

import json
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME

from layercard.errors import PlacementError

PREFIX = "checkpoint-"


def is_whole(checkpoint: Path) -> bool:
    """Whether `checkpoint` holds a trainer_state.json that can be read."""
    try:
        return isinstance(json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8")), dict)
    except (OSError, ValueError):
        return False


def last_whole(folder: Path) -> Path | None:
    """Return the newest checkpoint in `folder` that was saved to its end; None where there is none."""
    numbered = {
        int(number): path
        for path in folder.glob(f"{PREFIX}*")
        if (number := path.name.removeprefix(PREFIX)).isdecimal() and is_whole(path)
    }
    return numbered[max(numbered)] if numbered else None


def check_whole(checkpoint: Path | None) -> None:
    """Raise `PlacementError` where `checkpoint` is a folder that a killed run left half-written."""
    if checkpoint is None or not checkpoint.is_dir() or is_whole(checkpoint):
        return
    earlier = last_whole(checkpoint.parent)
    way = (
        f"Resume from {earlier} (`resume_from_checkpoint`), or delete {checkpoint}"
        if earlier is not None
        else f"No other checkpoint there is whole, so delete {checkpoint} and start without `resume_from_checkpoint`"
    )
    raise PlacementError(
        f"{checkpoint} cannot be resumed: its {TRAINER_STATE_NAME}, which is written last, is missing or cut short, so it is "
        f"half of a checkpoint, as a killed run leaves it. {way}."
    )
