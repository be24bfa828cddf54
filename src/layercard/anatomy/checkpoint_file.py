"""`saved_names`: what a checkpoint's adapter file calls its tensors. It is read as tensors alone, and nothing in it runs."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError

import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import safe_open

from layercard.errors import PlacementError


def has_adapter_file(path: Path) -> bool:
    """Whether a checkpoint folder holds an adapter in one file, as PEFT saves it."""
    return any((path / name).is_file() for name in (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME))


def saved_names(path: Path) -> list[str]:
    """Return the names of the tensors that the folder's adapter file holds; raise `PlacementError` where none can be read."""
    safetensors, pickled = path / SAFETENSORS_WEIGHTS_NAME, path / WEIGHTS_NAME
    if safetensors.is_file():
        with safe_open(safetensors, framework="pt") as file:
            return list(file.keys())
    if not pickled.is_file():
        raise PlacementError(
            f"The checkpoint {path} holds neither {SAFETENSORS_WEIGHTS_NAME} nor {WEIGHTS_NAME}, so its layers cannot be "
            "compared with the placement. Resume from a folder that `save_pretrained` wrote."
        )
    try:
        return list(torch.load(pickled, map_location="cpu", weights_only=True))
    except UnpicklingError:
        raise PlacementError(
            f"{pickled} holds more than tensors, and nothing else is read from a pickle file. Resume from a folder that "
            "`save_pretrained` wrote."
        ) from None
