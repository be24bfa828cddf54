"""A model's weights in another form: every parameter of a dtype, or linear weights packed to 4 or 8 bits.

Sizes are those of bitsandbytes: NF4 with double quantization, blocks of 64 numbers with one byte of scale each, and
256 of those bytes with one float32; LLM.int8 with one float32 a row. Values are not kept: this is for counting bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

BLOCK, BLOCKS = 64, 256
"""Numbers that share a scale in NF4, and scales that share one of theirs."""


def with_storage(model: nn.Module, dtype: torch.dtype, adapter_dtype: torch.dtype | None = None) -> nn.Module:
    """Give `model` new parameters of `dtype` (adapters of `adapter_dtype`) and new buffers of their own, and return it.

    Made on the CPU, by whatever mode is in force: so a model of the meta device becomes one that runs without values.
    """
    made: dict[
        int, tuple[nn.Parameter, nn.Parameter]
    ] = {}  # by id of the old one, which is kept: tied weights stay tied
    for path, module in model.named_modules():
        wanted = adapter_dtype if adapter_dtype is not None and ".lora_" in path else dtype
        for name, old in module._parameters.items():
            if old is not None:
                made.setdefault(id(old), (old, _like(old, wanted)))
                module._parameters[name] = made[id(old)][1]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return model


def _like(old: nn.Parameter, dtype: torch.dtype) -> nn.Parameter:
    values = torch.empty(old.shape, dtype=dtype if old.is_floating_point() else old.dtype)
    return nn.Parameter(values, requires_grad=old.requires_grad)


def pack_linear(model: Any, dtype: torch.dtype, bits: Literal[4, 8]) -> None:
    """Replace the linear modules of a model on the meta device, but the output embeddings, by packed ones."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child is not head:
                setattr(parent, name, PackedLinear(child, dtype, bits))


class PackedLinear(nn.Linear):
    """A linear module whose weights are bytes, unpacked to `dtype` for every product."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, bits: Literal[4, 8]) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.dtype, self.bits = dtype, bits
        size = packed_bytes(linear.in_features, linear.out_features, bits)
        self.weight = nn.Parameter(torch.empty(size, dtype=torch.uint8, device="meta"), requires_grad=False)
        self.bias = linear.bias

    def forward(self, input: Tensor) -> Tensor:
        """Return what has the size of the product."""
        output: Tensor = _PackedProduct.apply(
            input, self.weight, self.in_features, self.out_features, self.bits, self.dtype
        )
        return output if self.bias is None else output + self.bias


def packed_bytes(in_features: int, out_features: int, bits: Literal[4, 8]) -> int:
    """Return the bytes of a packed weight of (out_features, in_features) and its scales."""
    numbers = in_features * out_features
    if bits == 8:
        return numbers + 4 * out_features
    blocks = math.ceil(numbers / BLOCK)
    return math.ceil(numbers / 2) + blocks + 4 * math.ceil(blocks / BLOCKS)


class _PackedProduct(torch.autograd.Function):
    """Unpacks for the product, and once more for its backward; 8-bit products save their input, 4-bit ones nothing."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, features: int, width: int, bits: int, dtype: torch.dtype
    ) -> Tensor:
        ctx.sizes = (features, width, bits, dtype)
        ctx.save_for_backward(weight, *([x] if bits == 8 else []))
        x = x.to(dtype)
        if bits == 8:
            return x.to(torch.int8).to(torch.int32)[..., :1].to(dtype).expand(*x.shape[:-1], width).contiguous()
        return x @ _unpacked(weight, features, width, dtype).t()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        features, width, _, dtype = ctx.sizes
        gradient = gradients[0].to(dtype) @ _unpacked(ctx.saved_tensors[0], features, width, dtype)
        return gradient, None, None, None, None, None


def _unpacked(weight: Tensor, features: int, width: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(width, features, dtype=dtype, device=weight.device)


def _quantization(config: Any) -> dict[str, Any]:
    """How the weights were saved packed; empty where they were not."""
    saved = vars(config).get("quantization_config") or {}
    return dict(saved) if isinstance(saved, Mapping) else dict(saved.to_dict())


def saved_bits(config: Any) -> Literal[4, 8] | None:
    """Return the bits of weights that a configuration says are packed; None where they are not, or are otherwise."""
    saved = _quantization(config)
    if saved.get("load_in_4bit") or saved.get("bits") == 4:
        return 4
    return 8 if saved.get("load_in_8bit") or saved.get("bits") == 8 else None


def unknown_packing(config: Any) -> str | None:
    """Return why memory is not predicted for weights in a form whose size is not known; None where it is."""
    if not (saved := _quantization(config)) or saved_bits(config) is not None:
        return None
    method = saved.get("quant_method")
    return f"The weights were saved packed by `{method}`, whose sizes are not known here; known are 4 and 8 bits."
