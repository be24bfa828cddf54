"""What an Axolotl configuration adapts in a base model, and the keys that adapt the same on chosen layers alone.

Axolotl's own `peft_layers_to_transform` says it where PEFT then selects exactly the wanted modules. A regular expression,
`all-linear`, targets outside the layers and expert parameters are beyond it; there the modules are named in full. Works on
names alone, so it serves models without weights.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from layercard.anatomy.layers import sole_stack
from layercard.anatomy.refusals import check_config
from layercard.anatomy.selection import Live, narrowed_fields, selected_modules, selected_parameters, with_fields
from layercard.errors import HostError, PlacementError, one_of
from layercard_axolotl import compat

if TYPE_CHECKING:
    from torch import nn

    from layercard.anatomy.layers import LayerStack

LAYERS, PATTERN = "peft_layers_to_transform", "peft_layers_pattern"
TARGETS, LINEAR, PARAMETERS = "lora_target_modules", "lora_target_linear", "lora_target_parameters"
KERNELS_OFF = (
    f"Turn the fused LoRA kernels off ({', '.join(f'`{key}: false`' for key in compat.FUSED_KERNELS)}): layers are then "
    "chosen after the adapter is built."
)


class Selection:
    """The modules and parameters of a base model that its Axolotl configuration adapts, by their names in it."""

    def __init__(self, cfg: Any, model: nn.Module) -> None:
        """Read `cfg` as Axolotl and PEFT will; raise `ModelError` where the adapter is of a kind that cannot be placed."""
        config = compat.adapter_config(model, cfg)
        check_config(config)
        self._asked, self._written = config.target_modules, bool(cfg.get(LINEAR))
        self.config = compat.with_linear_names(config, model)
        self._modules = dict(model.named_modules())
        self.model = model
        self.modules = selected_modules(self.config, self._modules)
        self.parameters = selected_parameters(self.config, self._modules)

    def stack_path(self) -> str | None:
        """Return the path of the only stack of layers that is adapted, None where that decides nothing."""
        return sole_stack(self.model, self.modules | self.parameters)

    def layers_of(self, stack: LayerStack) -> tuple[int, ...]:
        """Return the layers of `stack` that are adapted; raise `PlacementError` where none is."""
        layers = {stack.layer_of(name) for name in self.modules | self.parameters}
        if layers <= {None}:
            raise PlacementError(
                f"{self._said()} selects no module in the layers of `{stack.path}`, so there is nothing to place. They hold "
                f"{one_of(_endings(stack, self._modules))}; name some of those."
            )
        return tuple(sorted(layer for layer in layers if layer is not None))

    def names_inside(self, stack: LayerStack) -> list[str]:
        """Return the adapted modules' paths inside their layers, such as `self_attn.q_proj`."""
        inside = ((name, stack.layer_of(name)) for name in self.modules)
        return sorted({n.removeprefix(f"{stack.name(i)}.") for n, i in inside if i is not None})

    def keys_on(self, stack: LayerStack, layers: Sequence[int]) -> dict[str, Any]:
        """Return the Axolotl keys to set so that PEFT adapts `layers`, targets outside the stack, and nothing else.

        None takes a key out. Raises `HostError` where no spelling selects exactly that.
        """
        live = self._live(stack, layers)
        layered = {"layers_to_transform": list(layers), "layers_pattern": [stack.pattern]}
        if not isinstance(self._asked, str) and self._selects(layered, live):
            return {LAYERS: list(layers), PATTERN: [stack.pattern]}
        try:
            return _as_keys(narrowed_fields(self.config, self._modules, live), linear=self._written)
        except PlacementError as inexact:
            raise HostError(f"{inexact} {KERNELS_OFF}") from inexact

    def _live(self, stack: LayerStack, layers: Sequence[int]) -> Live:
        kept = {name: stack.layer_of(name) for name in self.modules if stack.layer_of(name) in {None, *layers}}
        return Live(
            layers=tuple(layers),
            pattern=stack.pattern,
            inside={name: stack.name(layer) for name, layer in kept.items() if layer is not None},
            outside=frozenset(name for name, layer in kept.items() if layer is None),
            parameters=frozenset(name for name in self.parameters if stack.layer_of(name) in {None, *layers}),
        )

    def _selects(self, fields: dict[str, Any], live: Live) -> bool:
        config = with_fields(self.config, fields)
        modules = selected_modules(config, self._modules)
        return modules == live.modules and self.parameters == live.parameters

    def _said(self) -> str:
        return f"`{LINEAR}`" if self._written else f"`{TARGETS}` ({self._asked!r})"


def _as_keys(fields: Mapping[str, Any], *, linear: bool) -> dict[str, Any]:
    """Return PEFT's fields under Axolotl's names; `linear` where the configuration asks for every linear module."""
    layers, pattern = fields["layers_to_transform"], fields["layers_pattern"]
    keys: dict[str, Any] = {
        TARGETS: sorted(fields["target_modules"]),
        LAYERS: layers,
        PATTERN: None if pattern is None else [pattern],
    }
    if linear:
        keys[LINEAR] = False
    if fields["target_parameters"]:
        keys[PARAMETERS] = list(fields["target_parameters"])
    return keys


def _endings(stack: LayerStack, modules: Collection[str]) -> list[str]:
    """The last parts of the names of modules without children in the stack's layers."""
    inside = {name for name in modules if stack.layer_of(name) is not None}
    parents = {name.rpartition(".")[0] for name in inside}
    return sorted({name.rpartition(".")[2] for name in inside - parents})
