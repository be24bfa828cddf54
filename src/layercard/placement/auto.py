"""`auto`: which layers to adapt where nobody said, and no Layer Card matches.

Goes by depth alone, so nothing is probed. Five layers of a deep model lose quality without a word (layer-card.txt,
table 4: Llama-2-7B on GSM8K, 8.8 at best against 20.2 for all-layer LoRA), so `auto` spreads more of them:

    prefer      how many        where
    quality     a half          uniform over all depth
    balanced    a third         uniform over the upper two thirds
    speed       a quarter       the last ones

Shares are rounded up, and count among the layers that have adapters. The choice rests on depth and cost; its quality is
unproven, and the reason says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from layercard.placement.strategies import StrategyRequest, last, uniform
from layercard.settings import Prefer

QUALITY_UNPROVEN = "quality is unproven: no Layer Card for this model and data was used"


@dataclass(frozen=True)
class AutoRule:
    """What `auto` does under one `prefer`: adapt `share` of the layers, none of the lowest `lowest_share` of them."""

    share: float
    lowest_share: float
    spread: bool
    where: str

    def count(self, num_layers: int) -> int:
        """Return how many layers it adapts, at least one."""
        return max(1, math.ceil(num_layers * self.share - 1e-9))

    def lowest(self, num_layers: int) -> int:
        """Return how many of the lowest layers it leaves alone."""
        return int(num_layers * self.lowest_share + 1e-9)


RULES: dict[Prefer, AutoRule] = {
    "quality": AutoRule(1 / 2, 0.0, True, "uniform over all depth"),
    "balanced": AutoRule(1 / 3, 1 / 3, True, "uniform over the upper two thirds"),
    "speed": AutoRule(1 / 4, 0.0, False, "the last ones"),
}


def auto_request(request: StrategyRequest, prefer: Prefer, count: int | None) -> StrategyRequest:
    """Return `request` narrowed to what `prefer` allows; `count` None leaves the number to `auto`.

    A `count` that was asked for wins over the lowest layer of `prefer`; `min_entry` wins over both.
    """
    rule, layers = RULES[prefer], request.adapted
    first = len(layers) - len(request.candidates)  # `min_entry` leaves out the lowest ones
    lowest = max(first, rule.lowest(len(layers)))
    if count is None:
        count = min(rule.count(len(layers)), len(layers) - lowest)
    lowest = max(first, min(lowest, len(layers) - count))
    return replace(request, min_entry=layers[lowest], count=count)


def choose_auto(request: StrategyRequest, prefer: Prefer) -> tuple[int, ...]:
    """Return the layers of a request that `auto_request` made, ascending."""
    return tuple(uniform(request) if RULES[prefer].spread else last(request))
