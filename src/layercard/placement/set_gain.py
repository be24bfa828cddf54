"""`set_gain`: layers picked one after another, each the one that raises what the whole set is worth most.

What sets are worth is told by the score of this name (`layercard.scores.set_gain`). Forward selection is not sure to find the
best set of so many layers, and that a larger gain is a better fine-tune is unproven.
"""

from __future__ import annotations

from itertools import islice

from layercard.placement.strategies import Rule, Strategy, StrategyRequest
from layercard.scores.set_gain import NAME


def forward(request: StrategyRequest) -> list[int]:
    """Pick `count` layers by forward selection; the layers ranked highest where the score says nothing of sets."""
    if request.scores is None or request.scores.sets is None:
        return request.ranked[: request.count]
    return [layer for layer, _ in islice(request.scores.sets.grown((), request.candidates), request.count)]


STRATEGIES: tuple[Strategy, ...] = (Rule(NAME, "score", forward),)
