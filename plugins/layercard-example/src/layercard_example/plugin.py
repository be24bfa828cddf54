"""The hooks through which this plugin joins layercard; the entry point in pyproject.toml names this module."""

from __future__ import annotations

from collections.abc import Callable

from layercard import Scorer, hookimpl
from layercard.placement.strategies import Strategy
from layercard_example.deep_energy import DeepEnergy
from layercard_example.odd_layers import OddLayers


@hookimpl
def register_scorers(register: Callable[[Scorer], None]) -> None:
    """Register the score `deep_energy`."""
    register(DeepEnergy())


@hookimpl
def register_strategies(register: Callable[[Strategy], None]) -> None:
    """Register the strategy `odd_layers`."""
    register(OddLayers())
