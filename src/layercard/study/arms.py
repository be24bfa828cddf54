"""The sets of layers that a study trains: the regimes of resnorm, what `auto` does by depth, and all layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from layercard.cards.strata import regimes
from layercard.placement.auto import auto_request, choose_auto
from layercard.placement.strategies import StrategyRequest
from layercard.probing.statistics import Array
from layercard.settings import Prefer

DEPTH: dict[str, tuple[Prefer, str]] = {
    "uniform": ("quality", "uniform over all depth, half of the layers"),
    "upper_uniform": ("balanced", "uniform over the upper two thirds, a third of the layers"),
    "last": ("speed", "the last quarter of the layers"),
}
"""The strategies by depth, by the name that cards know them by, with the `prefer` under which `auto` picks them."""
ALL_LAYERS = "all_layers"
UNTUNED = "untuned"


@dataclass(frozen=True)
class Arm:
    """One set of layers to train."""

    name: str
    kind: Literal["regime", "strategy", "reference"]
    layers: tuple[int, ...]
    strategy: str | None = None
    """In words, how the layers were picked."""


def make_arms(importance: Array) -> list[Arm]:
    """Return the sets of layers for (layers,) resnorm, all layers first: they are what the others are compared with."""
    count = len(importance)
    arms = [Arm(ALL_LAYERS, "reference", tuple(range(count)))]
    arms += [Arm(name, "regime", layers) for name, layers in regimes(importance).items()]
    for name, (prefer, words) in DEPTH.items():
        request = auto_request(StrategyRequest(count, count), prefer, None)
        arms.append(Arm(name, "strategy", choose_auto(request, prefer), words))
    return arms
