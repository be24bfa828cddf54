"""A copy of a model in shards: every rank holds the whole model on its CPU, and its own part of each weight on its device.

FSDP2 (`fully_shard`) takes one layer after the other, moves its weights to the device, keeps this rank's part and lets the rest
go, so no device ever holds more than its shards, one layer and what lies outside the layers. The model that is copied is only
read. Offers `why_not_in_shards`, `bytes_in_shards` and `sharded_copy`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from layercard.anatomy.layers import LayerStack, all_stacks
from layercard.anatomy.targets import packed_kinds
from layercard.errors import ModelError
from layercard.random_state import random_state
from layercard.ranks import meet, ranks, together

GATHERED = 3
"""Whole layers that FSDP2 holds at a time: the one that runs, the one fetched meanwhile, and the buffer that it comes in."""


def why_not_in_shards(model: nn.Module, stack: LayerStack) -> str | None:
    """Return in a sentence which weights of `model` cannot be cut into shards, None where all can."""
    for name, parameter in model.named_parameters():
        if type(parameter) is not nn.Parameter:
            return f"`{name}` is of the class {type(parameter).__name__}: quantized weights are not cut into shards."
        if not parameter.is_floating_point() or parameter.dim() == 0:
            what = "one number" if parameter.dim() == 0 else str(parameter.dtype).removeprefix("torch.")
            return f"`{name}` is {what}, which FSDP2 does not cut into shards."
    shared = _shared_between_blocks(model, stack)
    if shared is not None:
        return f"`{shared}` is used outside its layer too, and FSDP2 shards each layer for itself."
    packed = packed_kinds(stack)
    return f"The layers hold quantized weights ({packed[0]}), which are not cut into shards." if packed else None


def bytes_in_shards(model: nn.Module, stack: LayerStack) -> int:
    """Return how many bytes of weights a device holds at most while the copy runs on as many ranks as there are."""
    layers = [model.get_submodule(name) for name in _blocks(model, stack)]
    inside = {id(p) for layer in layers for p in layer.parameters()}
    outside = _bytes(p for p in model.parameters() if id(p) not in inside)
    largest = max(_bytes(layer.parameters()) for layer in layers)
    return _bytes(model.parameters()) // ranks() + GATHERED * largest + outside


def sharded_copy(model: nn.Module, stack: LayerStack, device: torch.device) -> tuple[nn.Module, LayerStack]:
    """Return a frozen copy of `model` that FSDP2 shards over all ranks' devices of the kind of `device`, and its layers.

    Every rank has to ask and holds the same weights, whole, in `model`. Adapters and tied weights are copied as such, buffers
    whole. Raises `ModelError` where the model cannot be copied or sharded; where one rank fails, every rank raises.
    """
    from torch.distributed.device_mesh import init_device_mesh

    meet()  # the mesh asks all ranks
    mesh = init_device_mesh(device.type, (ranks(),))
    with together(), random_state():
        try:
            copied = _sharded(_copied(model), _blocks(model, stack), mesh)
        except torch.OutOfMemoryError:
            raise
        except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise ModelError(
                f"{type(model).__name__} cannot be copied into shards for the probe ({type(error).__name__}: {error}). FSDP2 "
                "takes models whose weights are plain tensors that no two layers share. Choose layers by depth or by hand, "
                "which needs no probe."
            ) from error
    return copied, LayerStack(stack.path, tuple(copied.get_submodule(stack.name(i)) for i in range(len(stack))))


def _copied(model: nn.Module) -> nn.Module:
    """A copy with modules, hooks and buffers of its own, and frozen parameters that still read the model's memory."""
    held: dict[int, Any] = {}
    for parameter in model.parameters():
        held[id(parameter)] = nn.Parameter(parameter.detach().contiguous(), requires_grad=False)
    for buffer in model.buffers():
        held[id(buffer)] = buffer.detach().clone()  # FSDP2 moves it, and a forward may write into it
    return copy.deepcopy(model, held)


def _sharded(model: nn.Module, blocks: Iterable[str], mesh: Any) -> nn.Module:
    """Cut the weights of each block, and then what is left, into shards, in place."""
    from torch.distributed.fsdp import fully_shard

    for name in blocks:
        fully_shard(model.get_submodule(name), mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def _blocks(model: nn.Module, stack: LayerStack) -> list[str]:
    """The names of the layers of the stack and of every other one, those that lie within others first."""
    names = {each.name(i) for each in (stack, *all_stacks(model)) for i in range(len(each))}
    return sorted(names, key=lambda name: (-name.count("."), name))


def _shared_between_blocks(model: nn.Module, stack: LayerStack) -> str | None:
    """The name of a parameter that belongs to two layers, or to one and to what lies outside; None where there is none."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    blocks = _blocks(model, stack)
    for same in names.values():
        if len(same) > 1 and len({_block_of(name, blocks) for name in same}) > 1:
            return same[-1]
    return None


def _block_of(name: str, blocks: list[str]) -> str:
    return max((block for block in blocks if name.startswith(f"{block}.")), key=len, default="")


def _bytes(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() * p.element_size() for p in {id(p): p for p in parameters}.values())
