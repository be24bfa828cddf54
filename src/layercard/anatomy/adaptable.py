"""Which layers of a stack have adapters, or will have them: the layers that a placement can choose among.

Offers `adapted_layers` for a model with adapters; `layers_holding`, `names_held`, `targets_below` and `unmatched` for one
without. In many hybrid models
attention sits in every fourth layer, and with it the usual target modules.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from layercard.anatomy.adapters import adapter_sites
from layercard.anatomy.layers import LayerStack
from layercard.anatomy.other_stacks import in_towers
from layercard.anatomy.targets import is_linear, linear_names
from layercard.anatomy.trainable_below import runs_above
from layercard.errors import ModelError, one_of

SHOWN = 12


def adapted_layers(model: PeftModel, stack: LayerStack) -> tuple[int, ...]:
    """Return the layers of `stack` in which LoRA adapts something, ascending.

    Raises `ModelError` where that is none of them, naming the target modules and what the layers hold.
    """
    sites = adapter_sites(model)
    found = sorted({layer for site in sites if (layer := stack.layer_of(site.path)) is not None})
    if found:
        return tuple(found)
    elsewhere = ", ".join(f"`{site.name}`" for site in sites[:3]) or "nothing"
    raise ModelError(
        f"None of the {len(stack)} layers in `{stack.path}` has adapters: LoRA adapts {elsewhere}"
        f"{f' and {len(sites) - 3} more' if len(sites) > 3 else ''}, outside of them. The layers hold {_linear(stack)}. Name "
        "some of those in `target_modules`, or another stack in `layers_path`."
    )


def layers_holding(model: nn.Module, stack: LayerStack, names: Sequence[str] | None) -> tuple[int, ...]:
    """Return the layers of a bare model in which LoRA on `names` (suffixes) would adapt something, ascending.

    None stands for every linear module. Raises `ModelError` where that is no layer.
    """
    found = layers_held(stack, names)
    if found:
        return found
    if names is None:
        return tuple(range(len(stack)))  # packed weights are of the quantizer's own classes
    raise ModelError(
        f"No target module named {one_of(names)} was found in the layers of {type(model).__name__}. The layers hold "
        f"{_linear(stack)}."
    )


def layers_held(stack: LayerStack, names: Sequence[str] | None) -> tuple[int, ...]:
    """Return the layers of a bare model's `stack` that hold modules of these `names` (None: any linear one); may be none."""
    if names is None:
        return tuple(layer for layer in range(len(stack)) if linear_names(_single(stack, layer)))
    return tuple(i for i, layer in enumerate(stack.layers) if any(_ends_with(n, names) for n in _inside(layer)))


def unmatched(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Return which of `names` (suffixes) no module of the model has; PEFT passes over them without a word."""
    paths = [name for name, _ in model.named_modules()]
    return [name for name in names if not any(_ends_with(path, [name]) for path in paths)]


def names_held(model: nn.Module, names: Sequence[str] | None) -> list[str]:
    """Return the paths of the modules of a bare model that LoRA on `names` (None: every linear one) would adapt."""
    if names is None:
        head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
        return [name for name, module in model.named_modules() if is_linear(module) and module is not head]
    return [name for name, _ in model.named_modules() if name and _ends_with(name, names)]


def targets_below(
    model: nn.Module, stack: LayerStack, names: Sequence[str] | None, shed_towers: Collection[str]
) -> list[str]:
    """Return the modules outside `stack` that LoRA on `names` would adapt and that run, or may run, below its layers.

    `shed_towers` are the paths of towers whose adapters placement takes out.
    """
    above, found = runs_above(model, stack), []
    modules = dict(model.named_modules())
    for name in names_held(model, names):
        shed = in_towers(name, shed_towers) and not isinstance(modules[name], nn.Embedding)
        if stack.layer_of(name) is None and not shed and any(id(p) not in above for p in modules[name].parameters()):
            found.append(name)
    return found


def _single(stack: LayerStack, layer: int) -> LayerStack:
    return LayerStack(stack.path, (stack.layers[layer],))


def _inside(layer: nn.Module) -> Iterator[str]:
    return (name for name, _ in layer.named_modules() if name)


def _ends_with(path: str, names: Iterable[str]) -> bool:
    return any(path == name or path.endswith(f".{name}") for name in names)


def _linear(stack: LayerStack) -> str:
    """The last parts of the linear modules' names, for a message."""
    known = sorted({name.rsplit(".", 1)[-1] for name in linear_names(stack)})
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return f"{one_of(known[:SHOWN])}{more}" if known else "no linear module"
