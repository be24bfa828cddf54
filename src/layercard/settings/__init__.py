"""What a user can say about layer placement."""

from layercard.settings.checks import Prefer
from layercard.settings.placement_settings import PlacementSettings

__all__ = ["PlacementSettings", "Prefer"]
