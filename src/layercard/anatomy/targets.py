"""Finds the target modules: the matrices in each layer that LoRA adapts, or would adapt.

Offers `find_targets`, `linear_names`, `packed_kinds` and `weights_out_of_reach`. Where adapters exist, the targets are
the adapted modules, each with its own A, whatever class the base module has: its forward takes x and gives y = W x.
Otherwise they are all linear modules of the layers, or those named.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from layercard.anatomy.layers import LayerStack
from layercard.errors import ModelError, one_of


@dataclass(frozen=True)
class TargetModule:
    """One matrix y = W x of one layer, as the base model runs it."""

    layer: int
    name: str
    """Its path inside the layer, such as `self_attn.q_proj`."""
    module: nn.Module
    """The base module: its forward hook sees x and y = W x, whether an adapter wraps it or not."""
    in_features: int
    lora_a: Tensor | None
    """(r, in_features) of the adapter that wraps it, or None."""


def find_targets(model: nn.Module, stack: LayerStack, *, names: Sequence[str] | None = None) -> list[TargetModule]:
    """Return the target modules of all layers, in model order.

    `names` (suffixes such as `q_proj`) narrows them where the model has no adapters. Raises `ModelError` where there are
    none.
    """
    adapted = [t for layer in range(len(stack)) for t in _adapted(stack, layer)]
    if adapted:
        return adapted
    _refuse_unread(model, stack)
    linear = [t for layer in range(len(stack)) for t in _linear(stack, layer)]
    chosen = [t for t in linear if names is None or any(t.name == n or t.name.endswith(f".{n}") for n in names)]
    if not chosen:
        known = sorted({t.name.rsplit(".", 1)[-1] for t in linear})
        raise ModelError(
            f"No target module named {one_of(names or ())} was found in the layers of {type(model).__name__}. "
            f"Its layers hold {one_of(known)}."
            if linear
            else f"The layers of {type(model).__name__} hold no linear module that LoRA could adapt."
        )
    return chosen


def linear_names(stack: LayerStack) -> frozenset[str]:
    """Return the paths, inside a layer, of every linear module of the base model, adapted or not."""
    modules = (named for layer in stack.layers for named in layer.named_modules())
    return frozenset(n.removesuffix(".base_layer") for n, m in modules if is_linear(m) and "lora_" not in n)


def _refuse_unread(model: nn.Module, stack: LayerStack) -> None:
    """Raise `ModelError` where the model has adapters, of which the probe can read none in these layers."""
    from peft.tuners.lora import LoraLayer

    if not any(isinstance(module, LoraLayer) for module in model.modules()):
        return
    unread = weights_out_of_reach(stack)
    found = (
        f"Its layers have adapters on {one_of(unread)} alone"
        if unread
        else f"None of its adapters is in `{stack.path}`"
    )
    raise ModelError(
        f"The probe cannot read what is adapted in {type(model).__name__}. {found}, and it reads adapters on linear modules "
        "of the layers, those of quantized bases included. Add such modules to `target_modules`, or choose layers by depth or "
        "by hand, such as `lora_layers: uniform`."
    )


def _adapted(stack: LayerStack, layer: int) -> Iterator[TargetModule]:
    for name, module, adapter in _adapters(stack.layers[layer]):
        if _is_read(module, adapter):
            a = module.lora_A[adapter].weight
            yield TargetModule(layer, name, module.get_base_layer(), a.shape[1], a)


def _adapters(layer: nn.Module) -> Iterator[tuple[str, Any, str]]:
    """Yield the path inside the layer, the LoRA module and its active adapter, of each module that has one."""
    from peft.tuners.lora import LoraLayer

    for name, module in layer.named_modules():
        if isinstance(module, LoraLayer):
            held = {*module.lora_A, *module.lora_embedding_A}
            adapter = next((a for a in module.active_adapters if a in held), None)
            if adapter is not None:
                yield name, module, adapter


def _is_read(module: Any, adapter: str) -> bool:
    """Whether the base module is a matrix that its own forward applies: y = W x with x its first input."""
    from peft.tuners.lora import ParamWrapper
    from peft.tuners.lora.layer import MultiheadAttention

    base = module.get_base_layer()
    if isinstance(module, ParamWrapper):
        return isinstance(base, nn.Linear) and module.parameter_name == "weight"
    if adapter not in module.lora_A or isinstance(module, MultiheadAttention):
        return False
    return isinstance(module.lora_A[adapter], nn.Linear)


def _linear(stack: LayerStack, layer: int) -> Iterator[TargetModule]:
    for name, module in stack.layers[layer].named_modules():
        if is_linear(module):
            yield TargetModule(layer, name, module, _in_features(module), None)


def is_linear(module: nn.Module) -> bool:
    """Whether the module is a linear one that the probe can read."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D) or _is_packed(module)


def _is_packed(module: nn.Module) -> bool:
    """Whether it is a quantizer's own linear module: no `nn.Linear`, the sizes of one, and its weights in buffers."""
    sizes = (getattr(module, "in_features", None), getattr(module, "out_features", None))
    return all(isinstance(size, int) for size in sizes) and _holds_buffers_alone(module)


def _holds_buffers_alone(module: nn.Module) -> bool:
    return next(module.children(), None) is None and next(module.buffers(), None) is not None


def packed_kinds(stack: LayerStack) -> tuple[str, ...]:
    """Return the names of the classes of the layers' linear modules that are a quantizer's own."""
    return tuple(sorted({type(m).__name__ for layer in stack.layers for m in layer.modules() if _is_packed(m)}))


def _in_features(module: nn.Module) -> int:
    return int(getattr(module, "nx")) if hasattr(module, "nx") else int(getattr(module, "in_features"))  # noqa: B009 -- Conv1D


def initial_a(target: TargetModule, rank: int, seed: int) -> Tensor:
    """Return the A that projects the target's input: the adapter's own, or one drawn as PEFT draws it.

    Shape (r, in_features), float32. Drawn from uniform(-1/√d, 1/√d), PEFT's Kaiming initialisation with a = √5, with a
    generator of its own seeded by `seed`, the layer and the name, so that neither order nor device changes it. Of an adapter
    that FSDP2 shards it is gathered, so every rank has to ask.
    """
    if target.lora_a is not None:
        return _whole(target.lora_a.detach()).to(torch.float32)
    mixed = sum(ord(c) * 31**i for i, c in enumerate(target.name[-12:])) + 1_000_003 * target.layer + 7_919 * seed
    generator = torch.Generator().manual_seed(mixed % 2**63)
    bound = 1 / math.sqrt(target.in_features)
    return (torch.rand(rank, target.in_features, generator=generator) * 2 - 1) * bound


def _whole(tensor: Tensor) -> Tensor:
    """The whole of a weight that FSDP2 may shard; every rank has to ask."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def weights_out_of_reach(stack: LayerStack) -> tuple[str, ...]:
    """Return the names, inside a layer, of what the probe does not read.

    Where the layers have adapters these are the adapted parameters and modules that are no matrix applied by a module's
    forward (experts kept as parameters, embeddings, convolutions); elsewhere experts kept as parameters.
    """
    adapters = [found for layer in stack.layers for found in _adapters(layer)]
    if adapters:
        return tuple(sorted({_adapted_name(n, m) for n, m, adapter in adapters if not _is_read(m, adapter)}))
    return tuple(sorted({name for layer in stack.layers for name in _experts(layer)}))


def _adapted_name(name: str, module: Any) -> str:
    from peft.tuners.lora import ParamWrapper

    name = name.replace(".base_layer", "")
    return f"{name}.{module.parameter_name}" if isinstance(module, ParamWrapper) else name


def _experts(layer: nn.Module) -> Iterator[str]:
    """Yield the names of stacked matrices; a convolution's kernel has three axes too and is none."""
    for name, module in layer.named_modules():
        if not isinstance(module, nn.modules.conv._ConvNd):
            for own, parameter in module.named_parameters(recurse=False):
                if parameter.dim() == 3:
                    yield f"{name}.{own}" if name else own
