"""Tells one frozen prefix from another: a digest of its weights and configuration, and a cheap sign of
change.

The digest reads some thousand numbers of every tensor, so an edit of a few single weights may escape it
between runs; within a run every in-place change of a parameter shows in its version counter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from layercard.anatomy.layers import LayerStack
from layercard.anatomy.packed import plain_tensors

SAMPLED = 4096


def prefix_parameters(backbone: nn.Module, stack: LayerStack, entry: int) -> dict[str, Tensor]:
    """Return what the hidden states at `entry` are computed from: all of the backbone but the layers from there up."""
    above = {id(p) for layer in stack.layers[entry:] for p in (*layer.parameters(), *layer.buffers())}
    named = [*backbone.named_parameters(), *backbone.named_buffers()]
    return {name: tensor for name, tensor in named if id(tensor) not in above}


def digest(backbone: Any, parameters: dict[str, Tensor], entry: int) -> str:
    """Return a hash of the prefix: class, configuration, entry, and a sample of every tensor."""
    config = backbone.config
    kept = {k: v for k, v in sorted(config.to_dict().items()) if not k.startswith(("_", "transformers", "use_cache"))}
    seen = hashlib.blake2b(f"{type(backbone).__name__} {entry} {kept}".encode(), digest_size=16)
    seen.update(str(config._attn_implementation).encode())
    for name, tensor in parameters.items():
        seen.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        seen.update(b"".join(_sample(plain) for plain in plain_tensors(tensor)))
    return seen.hexdigest()


def _sample(tensor: Tensor) -> bytes:
    flat = tensor.detach().reshape(-1)
    step = max(1, len(flat) // SAMPLED)
    return flat[::step].contiguous().cpu().view(torch.uint8).numpy().tobytes() if len(flat) else b""


def change_signs(parameters: Iterable[Tensor]) -> tuple[tuple[int, int], ...]:
    """Return where each parameter lies and how often it was changed in place; buffers, which DDP rewrites, apart."""
    plain = chain.from_iterable(plain_tensors(p) for p in parameters if isinstance(p, nn.Parameter))
    return tuple((tensor.data_ptr(), tensor._version) for tensor in plain)
