"""What is compared: an `Arm` names itself, prepares the model and may act before each step.

Fixed sets of layers, fixed sets of modules, and schedules. Arms with the same `key` are the same training and share one
run, whatever selector chose them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from validity.live import Live

from layercard.anatomy.adapters import adapter_sites
from layercard.anatomy.verify import verify_placement
from layercard.cost.predict import UnitCosts, step_cost

RANK = 8


class Arm(Protocol):
    """One way of training."""

    @property
    def label(self) -> str:
        """Return what its files are called, without its seed."""

    def key(self) -> dict[str, Any]:
        """Return what it trains, as JSON; equal keys are the same training."""

    def share(self, depth: int) -> float:
        """Return the share of all layers that are adapted, by which its learning rate is chosen."""

    def begin(self, live: Live) -> None:
        """Prepare the model, whose every layer is adapted; runs inside the time that is counted."""

    def before_step(self, live: Live, step: int) -> None:
        """Act before a step, counted from 0; the same."""

    def cost(self, depth: int, step: int, epoch_steps: int, units: UnitCosts) -> float:
        """Return what a step costs by prediction, in forward passes of one layer."""


@dataclass(frozen=True)
class FixedLayers:
    """Adapts a set of layers; backpropagation ends at the lowest, and what is below is cached from the second epoch on."""

    layers: tuple[int, ...]
    depth: int

    @property
    def label(self) -> str:
        """Return how many layers, and the lowest."""
        return f"layers-{len(self.layers)}-from-{self.layers[0]}"

    def key(self) -> dict[str, Any]:
        """Return the layers."""
        return {"layers": list(self.layers)}

    def share(self, depth: int) -> float:
        """Return the share of layers."""
        return len(self.layers) / depth

    def begin(self, live: Live) -> None:
        """Narrow the adapters and move the entry."""
        live.narrow(self.layers)
        verify_placement(live.model, live.stack, self.layers)
        live.enter(self.layers[0])

    def before_step(self, live: Live, step: int) -> None:
        """Do nothing."""

    def cost(self, depth: int, step: int, epoch_steps: int, units: UnitCosts) -> float:
        """Return the cost of a placed step."""
        cached = step >= epoch_steps and self.layers[0] > 0
        return step_cost(depth, self.layers, checkpointing=False, prefix_cached=cached, units=units).total


@dataclass(frozen=True)
class WiderLayers(FixedLayers):
    """Fewer layers at a higher rank, so that there are as many parameters as in all-layer LoRA; alpha over rank stays."""

    name: str = ""
    rank: int = RANK

    @property
    def label(self) -> str:
        """Return whose layers, and the rank."""
        return f"{self.name.replace(' ', '-')}-rank-{self.rank}"

    def key(self) -> dict[str, Any]:
        """Return layers and rank."""
        return {"schedule": self.label, "layers": list(self.layers), "rank": self.rank}


def widened(name: str, arm: FixedLayers) -> WiderLayers:
    """Return a selector's arm with the rank at which it has all-layer LoRA's number of parameters."""
    return WiderLayers(arm.layers, arm.depth, name, round(RANK * arm.depth / len(arm.layers)))


def all_layers(depth: int) -> FixedLayers:
    """Return all-layer LoRA."""
    return FixedLayers(tuple(range(depth)), depth)


@dataclass(frozen=True)
class FixedModules:
    """Adapts a set of modules, as selectors do that know no layers; the entry moves to the lowest layer that has one."""

    modules: tuple[str, ...]
    """Dotted paths in the base model, ascending."""
    layers: tuple[int, ...]
    """Those that have one."""
    each: int
    """Modules of a layer that could be adapted."""

    @property
    def label(self) -> str:
        """Return how many modules, and the lowest layer."""
        return f"modules-{len(self.modules)}-from-{self.layers[0]}"

    def key(self) -> dict[str, Any]:
        """Return the modules."""
        return {"modules": list(self.modules)}

    def share(self, depth: int) -> float:
        """Return the share of modules."""
        return len(self.modules) / self.each / depth

    def begin(self, live: Live) -> None:
        """Put the bare module back everywhere else, and move the entry."""
        keep = set(self.modules)
        for site in adapter_sites(live.model):
            if site.name not in keep:
                setattr(site.parent, site.child, site.base)
        left = {site.name for site in adapter_sites(live.model)}
        if left != keep:
            raise ValueError(f"{len(keep)} modules were to be adapted; {len(left)} are.")
        live.enter(self.layers[0])

    def before_step(self, live: Live, step: int) -> None:
        """Do nothing."""

    def cost(self, depth: int, step: int, epoch_steps: int, units: UnitCosts) -> float:
        """Return the cost of a placed step; adapters are paid by the module."""
        cached = step >= epoch_steps and self.layers[0] > 0
        found = step_cost(depth, self.layers, checkpointing=False, prefix_cached=cached, units=units)
        return found.total - found.adapters * (1 - len(self.modules) / self.each / len(self.layers))


def modules_arm(names: Sequence[str], layer_of: Any, each: int) -> FixedModules:
    """Return the arm of these modules; `layer_of` gives the layer of a dotted path."""
    layers = sorted({layer_of(name) for name in names})
    return FixedModules(tuple(sorted(names)), tuple(layers), each)
