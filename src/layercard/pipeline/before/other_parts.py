"""What a placed run trains, or no longer trains, outside the layers that were placed: other stacks, heads, embeddings.

`decided` settles what becomes of other stacks' adapters, `towers_to_shed` names what has to go, and `Trainables` tells
afterwards what went and what stayed, each with its share of the trainable parameters.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from layercard.anatomy.layers import PEFT_PREFIX
from layercard.anatomy.other_stacks import in_towers, other_stacks

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from layercard.anatomy.layers import LayerStack
    from layercard.placement.placement import LayerPlacement
    from layercard.settings import PlacementSettings

_PEFT_PARTS = re.compile(r"\.(lora_|base_layer|modules_to_save|token_adapter).*$")


@dataclass(frozen=True)
class Elsewhere:
    """A module outside the placed stack whose parameters train, or trained before placement took its adapters out."""

    where: str
    """Its dotted path in the base model; a whole tower where it belongs to another stack."""
    stack: bool
    """Whether it is such a tower."""
    trains: bool
    trainable_parameters: int
    share: float
    """Of the parameters that train in this run or, where it does not train, of those that all-layer LoRA trains."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as report.json holds it."""
        return asdict(self)


def decided(
    placement: LayerPlacement,
    settings: PlacementSettings,
    model: nn.Module,
    stack: LayerStack,
    *,
    adapted: Iterable[str],
    resumed: bool = False,
) -> LayerPlacement:
    """Return the placement with what becomes of adapters on other stacks; None where there are none.

    `adapted` are the paths of the modules in `model` that have adapters, or will have them. A resumed
    run keeps what it began with. Else the setting decides; without it, a named `layers_path` says which stack is wanted, and
    the others are shed.
    """
    towers = {other.tower for other in other_stacks(model, stack)}
    if not any(in_towers(path, towers) for path in adapted):
        return replace(placement, other_stacks=None)
    if resumed:
        return replace(placement, other_stacks=placement.other_stacks or "keep")
    by_default = placement.other_stacks or ("shed" if settings.layers_path is not None else "keep")
    return replace(placement, other_stacks=settings.other_stacks or by_default)


def towers_to_shed(model: nn.Module, stack: LayerStack, placement: LayerPlacement) -> tuple[str, ...]:
    """Return the dotted paths in `model` of what loses its adapters beside the layers of `stack`."""
    if placement.other_stacks != "shed":
        return ()
    return tuple(dict.fromkeys(other.tower for other in other_stacks(model, stack)))


class Trainables:
    """The parameters of a model that train, as they are before it is narrowed."""

    def __init__(self, model: nn.Module, stack: LayerStack) -> None:
        self._model, self._stack = model, stack
        self._towers = tuple(dict.fromkeys(other.tower for other in other_stacks(model, stack)))
        self._found = [(name, p) for name, p in model.named_parameters() if p.requires_grad]

    def elsewhere(self) -> tuple[Elsewhere, ...]:
        """Return what lay outside the stack, now that the model is narrowed, in the order of its modules."""
        live = {id(p) for p in self._model.parameters() if p.requires_grad}
        totals = {
            True: sum(p.numel() for p in self._model.parameters() if p.requires_grad),
            False: sum(p.numel() for _, p in self._found),
        }
        counted: dict[tuple[str, bool, bool], int] = {}
        for name, parameter in self._found:
            if self._stack.layer_of(name) is None:
                key = (*self._place(name), id(parameter) in live)
                counted[key] = counted.get(key, 0) + parameter.numel()
        return tuple(
            Elsewhere(where, stack, trains, count, count / totals[trains])
            for (where, stack, trains), count in counted.items()
        )

    def _place(self, name: str) -> tuple[str, bool]:
        tower = next((tower for tower in self._towers if in_towers(name, [tower])), None)
        where = _PEFT_PARTS.sub("", name) if tower is None else tower
        return where.removeprefix(PEFT_PREFIX), tower is not None
