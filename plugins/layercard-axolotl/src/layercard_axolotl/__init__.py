"""layercard for Axolotl: the plugin that reads the YAML key `lora_layers`.

Axolotl only logs a plugin whose import raises `ImportError`, and then trains every layer as if nothing were wrong. So
`LayerCardPlugin` is imported when Axolotl asks for it, and what is missing is told by an error that stops the run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layercard_axolotl.plugin import LayerCardPlugin as LayerCardPlugin

__version__ = "0.1.0"
__all__ = ["LayerCardPlugin"]


class BrokenInstallationError(RuntimeError):
    """Something that the plugin needs cannot be imported; not an `ImportError`, which Axolotl would only log."""


def __getattr__(name: str) -> Any:
    if name != "LayerCardPlugin":
        raise AttributeError(f"module 'layercard_axolotl' has no attribute {name!r}")
    try:
        from layercard_axolotl.plugin import LayerCardPlugin
    except ImportError as missing:
        raise BrokenInstallationError(
            f"layercard-axolotl cannot be used here: {missing}. It needs Axolotl 0.19 or later and layercard in one "
            "environment. Install what is missing (`pip install layercard-axolotl`), or take the plugin out of `plugins`."
        ) from missing
    return LayerCardPlugin
