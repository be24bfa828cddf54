"""Find the layers worth adapting before a LoRA fine-tune starts, adapt only those, and measure what it saved.

Importing this package imports no torch: every name is resolved at first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layercard.anatomy.layers import LayerStack as LayerStack
    from layercard.cost.speedup import SpeedupReport as SpeedupReport
    from layercard.errors import LayercardError as LayercardError
    from layercard.hookspecs import hookimpl as hookimpl
    from layercard.pipeline.place import place as place
    from layercard.pipeline.probe import probe as probe
    from layercard.placement.placement import LayerPlacement as LayerPlacement
    from layercard.probing.statistics import LayerStatistics as LayerStatistics
    from layercard.scores.base import LayerScores as LayerScores
    from layercard.scores.base import Scorer as Scorer
    from layercard.settings import PlacementSettings as PlacementSettings

__version__ = "0.1.0"

_HOMES = {
    "LayerPlacement": "layercard.placement.placement",
    "LayerScores": "layercard.scores.base",
    "LayerStack": "layercard.anatomy.layers",
    "LayerStatistics": "layercard.probing.statistics",
    "LayercardError": "layercard.errors",
    "PlacementSettings": "layercard.settings",
    "Scorer": "layercard.scores.base",
    "SpeedupReport": "layercard.cost.speedup",
    "hookimpl": "layercard.hookspecs",
    "place": "layercard.pipeline.place",
    "probe": "layercard.pipeline.probe",
}

__all__ = [
    "LayerPlacement",
    "LayerScores",
    "LayerStack",
    "LayerStatistics",
    "LayercardError",
    "PlacementSettings",
    "Scorer",
    "SpeedupReport",
    "__version__",
    "hookimpl",
    "place",
    "probe",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'layercard' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
