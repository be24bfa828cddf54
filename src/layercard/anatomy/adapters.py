"""LoRA adapters in a model: where they sit.

Offers `adapter_sites` and `base_modules`, which see through PEFT's wrappers and give modules the names they have in
the bare base model, and `sole_adapter`. Knows nothing of placement. `check_narrowable` refuses what cannot be
narrowed, with the rules of `layercard.anatomy.refusals`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from peft import PeftModel
from peft.tuners.lora import LoraLayer, LoraModel
from peft.tuners.lora.layer import ParamWrapper
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from layercard.anatomy import refusals
from layercard.anatomy.layers import PEFT_PREFIX
from layercard.errors import ModelError

BASE_PREFIX = PEFT_PREFIX


@dataclass(frozen=True)
class AdapterSite:
    """A module that LoRA adapts.

    `name` is its dotted path in the bare base model; `parent.child` is where the outermost of its `wrappers` hangs;
    `base` is the bare module. LoRA on parameters nests several wrappers, the outermost first.
    """

    name: str
    parent: nn.Module
    child: str
    wrappers: tuple[LoraLayer, ...]
    base: nn.Module

    @property
    def path(self) -> str:
        """The dotted path in the PeftModel."""
        return BASE_PREFIX + self.name

    @property
    def parameters(self) -> tuple[str, ...]:
        """The adapted parameters' dotted paths in the bare base model; empty where the module itself is adapted."""
        return tuple(f"{self.name}.{w.parameter_name}" for w in self.wrappers if isinstance(w, ParamWrapper))

    @property
    def adapter_modules(self) -> Iterator[nn.Module]:
        """The modules that PEFT added here: the factors, dropout, magnitudes."""
        for wrapper in self.wrappers:
            yield from (module for name, module in wrapper.named_children() if name != "base_layer")


@dataclass(frozen=True)
class _Node:
    name: str
    parent: nn.Module
    child: str
    module: nn.Module


def adapter_sites(model: PeftModel) -> list[AdapterSite]:
    """Return the modules that LoRA adapts, in the order of the model's modules."""
    sites = []
    for node in _walk(model):
        wrappers, base = _unwrapped(node.module)
        if wrappers:
            sites.append(AdapterSite(node.name, node.parent, node.child, wrappers, base))
    return sites


def base_modules(model: PeftModel) -> dict[str, nn.Module]:
    """Return the modules of the bare base model by their names there, without anything that PEFT added."""
    return {node.name: _unwrapped(node.module)[1] for node in _walk(model)}


def sole_adapter(model: nn.Module) -> str:
    """Return the name of the LoRA adapter that the model trains; raise `ModelError` where it has none or several.

    Others may stand beside it, such as the frozen copy that TRL's `DPOTrainer` makes as its reference:
    `check_narrowable` says which.
    """
    refusals.check_lora(model)
    assert isinstance(model, PeftModel)
    return next(iter(model.active_adapters))


def check_narrowable(model: nn.Module, *, allow_trained: bool = False, allow_absent: bool = False) -> None:
    """Raise `ModelError` where taking adapters away would leave another model than before; touch nothing.

    Narrowing is exact where every adapter still adds nothing, so adapters must be at their initial values, and these
    must be an initialisation that leaves the base weights alone. `allow_trained` lets trained adapters pass: a resumed
    run has trained only the layers that its placement chose. `allow_absent` lets weights on the meta device pass: where layers
    are chosen already, nothing reads them. Adapters beside the one that trains must adapt the same modules, be frozen, and
    add nothing: they are narrowed with it.
    """
    adapter = sole_adapter(model)
    assert isinstance(model, PeftModel)
    for config in model.peft_config.values():
        refusals.check_config(config)
    refusals.check_parameters(model, allow_absent=allow_absent)
    wrappers = [(site.name, wrapper) for site in adapter_sites(model) for wrapper in site.wrappers]
    if not wrappers:
        raise ModelError(
            "The PeftModel holds no LoRA layer. Placement narrows LoRA that is already in the model. Build the model "
            "with a `LoraConfig` whose `target_modules` match."
        )
    refusals.check_wrappers(wrappers, adapter, allow_trained=allow_trained)
    refusals.check_factors(wrappers, adapter)
    for other in model.peft_config.keys() - {adapter}:
        refusals.check_beside(wrappers, adapter, other)


def adds_nothing(model: PeftModel) -> bool:
    """Whether the adapter that trains still has its initial values, at which it adds nothing."""
    adapter = sole_adapter(model)
    return not any(refusals.is_trained(wrapper, adapter) for site in adapter_sites(model) for wrapper in site.wrappers)


def _walk(model: PeftModel) -> Iterator[_Node]:
    tuner = model.base_model
    assert isinstance(tuner, LoraModel)
    seen: set[int] = set()

    def visit(name: str, parent: nn.Module, child: str, module: nn.Module) -> Iterator[_Node]:
        base = _unwrapped(module)[1]
        if id(base) in seen:
            return
        seen.add(id(base))
        yield _Node(name, parent, child, module)
        for inner, below in base.named_children():
            yield from visit(f"{name}.{inner}" if name else inner, base, inner, below)

    yield from visit("", tuner, "model", tuner.model)


def _unwrapped(module: nn.Module) -> tuple[tuple[LoraLayer, ...], nn.Module]:
    wrappers: list[LoraLayer] = []
    while isinstance(module, LoraLayer | AuxiliaryTrainingWrapper):
        if isinstance(module, LoraLayer):
            wrappers.append(module)
            module = module.base_layer
        else:
            module = module.original_module
    return tuple(wrappers), module
