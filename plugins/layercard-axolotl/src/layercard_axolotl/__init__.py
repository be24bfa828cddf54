"""layercard for Axolotl: the plugin that reads the YAML key `lora_layers`.

Axolotl only logs a plugin that cannot be imported, from 0.21 on where no line names it, and then trains every layer as if
nothing were wrong. So `LayerCardPlugin` is imported when Axolotl asks for it; where that fails, a stand-in stops the runs that
ask for layercard, and leaves all others alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from layercard_axolotl.asked import KEY, named

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
    except Exception as failure:  # noqa: BLE001 - whatever it is, Axolotl would swallow it
        return _stand_in(failure)
    return LayerCardPlugin


def _stand_in(failure: Exception) -> type:
    """Return a plugin that refuses every configuration which asks for layercard."""
    try:
        from axolotl.integrations.base import BasePlugin
    except Exception:  # noqa: BLE001 - Axolotl itself is what cannot be imported
        raise _broken(failure) from failure

    class LayerCardPlugin(BasePlugin):
        def register(self, cfg: Any) -> None:
            if named(cfg) or cfg.get(KEY) is not None:
                raise _broken(failure) from failure

    return LayerCardPlugin


def _broken(failure: Exception) -> BrokenInstallationError:
    return BrokenInstallationError(
        f"layercard-axolotl cannot be used here: {failure}. It needs Axolotl 0.19 or later and layercard in one environment. "
        f"Install what is missing (`pip install layercard-axolotl`), or take `{KEY}`, and the plugin's line under `plugins`, out "
        "of the configuration."
    )
