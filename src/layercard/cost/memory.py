"""The peak memory of a step: the CUDA allocator's where the step runs there, else a count of live bytes.

The count is deterministic: every storage that a torch operation allocates during the step is added when it appears
and subtracted when it is freed, recomputed activations of checkpointed layers and gradients included; the model's
own parameters and buffers are added to the highest sum. It does not see what a kernel allocates inside itself.
Neither way holds optimizer state, which does not exist before the first optimizer step, unless the step takes one.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from layercard.anatomy.packed import plain_tensors

CUDA_METHOD = "CUDA allocator's peak in a step"
COUNT_METHOD = (
    "approximation: the model's bytes and the highest sum of live tensor bytes in a step, without what kernels "
    "allocate inside themselves"
)
_WITHOUT = {CUDA_METHOD: ", without optimizer state", COUNT_METHOD: " and without optimizer state"}


def memory_method(device: torch.device, *, optimizer: bool = False) -> str:
    """Return the name of the way `peak_bytes` measures on this device, for the report's `memory_method`.

    `optimizer`: whether the step updates weights and its state is held.
    """
    method = CUDA_METHOD if device.type == "cuda" else COUNT_METHOD
    return f"{method}; optimizer state included" if optimizer else method + _WITHOUT[method]


def peak_bytes(step: Callable[[], None], model: nn.Module, device: torch.device) -> int:
    """Run `step` once and return the highest number of bytes that `model` and the step held at once.

    On CUDA this resets the allocator's peak statistics of `device`.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device))
    resident = {storage.data_ptr(): storage.nbytes() for storage in _storages(model)}
    with LiveBytes() as live:
        step()
    return sum(resident.values()) + live.peak


def _storages(model: nn.Module) -> Iterator[torch.UntypedStorage]:
    for tensor in chain(model.parameters(), model.buffers()):
        yield from (plain.untyped_storage() for plain in plain_tensors(tensor))


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that operations allocate inside the block; `peak` is the highest sum."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    @property
    def now(self) -> int:
        """The bytes that are alive at this moment."""
        return self._live

    def forget_peak(self) -> None:
        """Let `peak` begin anew from what is alive."""
        self.peak = self._live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, torch.Tensor)]
        held = {id(tensor.untyped_storage()) for tensor in inputs}  # views and in-place: nothing new
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf.untyped_storage(), held)
        return result

    def _add(self, storage: torch.UntypedStorage, held: set[int]) -> None:
        key = id(storage)
        if key in held or key in self._known:
            return
        size = storage.nbytes()
        self._known[key] = weakref.ref(storage, partial(self._freed, key, size))
        self._live += size
        self.peak = max(self.peak, self._live)

    def _freed(self, key: int, size: int, _: weakref.ref[torch.UntypedStorage]) -> None:
        self._known.pop(key, None)
        self._live -= size
