"""Finds the target modules: the matrices in each layer that LoRA adapts, or would adapt.

Offers `find_targets`, `linear_names` and `weights_out_of_reach`. Where adapters exist, the targets are the adapted
modules, each with its own A; otherwise they are all linear modules of the layers, or those named.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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


def _adapted(stack: LayerStack, layer: int) -> Iterator[TargetModule]:
    from peft.tuners.lora import LoraLayer, ParamWrapper

    for name, module in stack.layers[layer].named_modules():
        if not isinstance(module, LoraLayer) or isinstance(module, ParamWrapper):
            continue
        base = module.get_base_layer()
        adapter = next((a for a in module.active_adapters if a in module.lora_A), None)
        if adapter is not None and is_linear(base):
            a = module.lora_A[adapter].weight
            yield TargetModule(layer, name, base, a.shape[1], a)


def _linear(stack: LayerStack, layer: int) -> Iterator[TargetModule]:
    for name, module in stack.layers[layer].named_modules():
        if is_linear(module):
            yield TargetModule(layer, name, module, _in_features(module), None)


def is_linear(module: nn.Module) -> bool:
    """Whether the module is a linear one that the probe can read."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def _in_features(module: nn.Module) -> int:
    return module.in_features if isinstance(module, nn.Linear) else int(getattr(module, "nx"))  # noqa: B009 -- Conv1D


def initial_a(target: TargetModule, rank: int, seed: int) -> Tensor:
    """Return the A that projects the target's input: the adapter's own, or one drawn as PEFT draws it.

    Shape (r, in_features), float32. Drawn from uniform(-1/√d, 1/√d), PEFT's Kaiming initialisation with a = √5, with a
    generator of its own seeded by `seed`, the layer and the name, so that neither order nor device changes it.
    """
    if target.lora_a is not None:
        return target.lora_a.detach().to(torch.float32)
    mixed = sum(ord(c) * 31**i for i, c in enumerate(target.name[-12:])) + 1_000_003 * target.layer + 7_919 * seed
    generator = torch.Generator().manual_seed(mixed % 2**63)
    bound = 1 / math.sqrt(target.in_features)
    return (torch.rand(rank, target.in_features, generator=generator) * 2 - 1) * bound


def weights_out_of_reach(stack: LayerStack) -> tuple[str, ...]:
    """Return the names, inside a layer, of stacked expert weights kept as parameters: no linear hook sees them."""
    found = set()
    for layer in stack.layers:
        for name, parameter in layer.named_parameters():
            if parameter.dim() == 3 and "lora_" not in name:
                found.add(name.replace("base_layer.", ""))
    return tuple(sorted(found))
