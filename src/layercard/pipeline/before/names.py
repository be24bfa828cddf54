"""Checks the names in settings before a model is loaded: strategies, scores, a saved placement, a Layer Card."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layercard.placement.choose import needed_score
from layercard.placement.placement import LayerPlacement

if TYPE_CHECKING:
    from layercard.registry import Extensions
    from layercard.settings import PlacementSettings


def check_names(settings: PlacementSettings, extensions: Extensions) -> None:
    """Raise as the choice would, minutes earlier, where something is named that is not there.

    `SettingsError` for a strategy, a score that no choice reads, or a score that no plugin registers; `PlacementError` for a
    placement.json that cannot be read; `CardError` for a Layer Card that cannot be used.
    """
    score = needed_score(settings, extensions.strategies)
    if score is not None:
        extensions.scorers[score]
    if settings.placement_path is not None:
        LayerPlacement.load(settings.placement_path)
    if settings.consults_cards and settings.cards is not None:
        from layercard.cards.library import Library

        Library.open(extensions.card_folders).named(settings.cards)
