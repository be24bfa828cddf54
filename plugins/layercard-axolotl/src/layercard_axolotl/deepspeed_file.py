"""Reads from Axolotl's key `deepspeed` which ZeRO stage a run uses; what cannot be read is one clear error."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layercard.errors import SettingsError

STAGES = (0, 1, 2, 3)


def zero_stage(deepspeed: Any) -> int | None:
    """Return the stage that the mapping, or the file that it names, asks for; None without DeepSpeed or a stage.

    Raises `SettingsError` where the file is missing or no JSON, or the stage is none of DeepSpeed's.
    """
    if not deepspeed:
        return None
    where = "`deepspeed`"
    if isinstance(deepspeed, str):
        where, deepspeed = deepspeed, _read(Path(deepspeed))
    zero = deepspeed.get("zero_optimization") if isinstance(deepspeed, Mapping) else None
    if not isinstance(deepspeed, Mapping) or not isinstance(zero, Mapping | None):
        raise SettingsError(
            f"{where} holds no DeepSpeed settings where they are expected. It is a mapping, with `stage` under "
            f"`zero_optimization`, such as {json.dumps(_EXAMPLE)}."
        )
    stage = None if zero is None else zero.get("stage")
    if stage is not None and (isinstance(stage, bool) or stage not in STAGES):
        raise SettingsError(
            f"{where} sets `stage` under `zero_optimization` to {json.dumps(stage)}. DeepSpeed takes the numbers 0 to 3, without "
            "quotes, and `auto` for other settings alone. Write the stage that you mean; layers are placed under 0, 1 and 2."
        )
    return stage


_EXAMPLE = {"zero_optimization": {"stage": 2}}


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(
            f"`deepspeed` names {path}, which cannot be read from {Path.cwd()}: {error.strerror}. Give the path of a JSON file; "
            "`axolotl fetch deepspeed_configs` brings those of Axolotl's examples."
        ) from None
    except ValueError as error:
        raise SettingsError(
            f"`deepspeed` names {path}, which is no JSON: {error}. DeepSpeed and Axolotl read plain JSON, in which comments and "
            "commas after a last entry are mistakes. Take them out."
        ) from None
