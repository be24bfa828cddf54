"""What a user can say about layer placement."""

from layercard.settings.placement_settings import PlacementSettings, Prefer

__all__ = ["PlacementSettings", "Prefer"]
