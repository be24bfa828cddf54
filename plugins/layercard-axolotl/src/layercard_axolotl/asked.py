"""Whether an Axolotl configuration asks for layercard. Imports nothing, so that a broken installation can ask too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEY = "lora_layers"


def named(config: Mapping[str, Any]) -> bool:
    """Whether the configuration has a line for the plugin; Axolotl 0.21 loads it wherever it is installed."""
    return any(str(name).startswith("layercard_axolotl") for name in config.get("plugins") or ())
