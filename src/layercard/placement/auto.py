"""`auto`: which layers to adapt where nobody said, and no Layer Card matches.

Goes by depth alone, so nothing is probed. Five layers of a deep model lose quality without a word (layer-card.txt,
table 4: Llama-2-7B on GSM8K, 8.8 at best against 20.2 for all-layer LoRA), so `auto` spreads more of them:

    prefer      how many        where
    quality     a half          uniform over all depth
    balanced    a third         uniform over the upper two thirds
    speed       a quarter       the last ones

Shares are rounded up. The choice rests on depth and cost; its quality is unproven, and the reason says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from layercard.placement.strategies import StrategyRequest, last, uniform
from layercard.settings import Prefer

QUALITY_UNPROVEN = "quality is unproven: no Layer Card for this model and data was used"


@dataclass(frozen=True)
class AutoRule:
    """What `auto` does under one `prefer`: adapt `share` of all layers, none below `lowest_share` of the depth."""

    share: float
    lowest_share: float
    spread: bool
    where: str

    def count(self, num_layers: int) -> int:
        """Return how many layers it adapts, at least one."""
        return max(1, math.ceil(num_layers * self.share - 1e-9))

    def lowest(self, num_layers: int) -> int:
        """Return the lowest layer that it may adapt."""
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
    rule = RULES[prefer]
    lowest = max(request.min_entry, rule.lowest(request.num_layers))
    if count is None:
        count = min(rule.count(request.num_layers), request.num_layers - lowest)
    lowest = max(request.min_entry, min(lowest, request.num_layers - count))
    return replace(request, min_entry=lowest, count=count)


def choose_auto(request: StrategyRequest, prefer: Prefer) -> tuple[int, ...]:
    """Return the layers of a request that `auto_request` made, ascending."""
    return tuple(uniform(request) if RULES[prefer].spread else last(request))
