"""A strategy: layers of odd number, the deepest first."""

from __future__ import annotations

from layercard.placement.strategies import By, StrategyRequest


class OddLayers:
    """Picks the deepest `count` odd layers, fewer where there are not as many, and any where there is none."""

    name = "odd_layers"
    by: By = "depth"

    def choose(self, request: StrategyRequest) -> tuple[int, ...]:
        """Return the layers, ascending."""
        odd = [layer for layer in request.candidates if layer % 2 == 1]
        return tuple((odd or list(request.candidates))[-request.count :])
