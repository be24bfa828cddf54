"""Models that are spread over the ranks of a run: which of them can be probed, and how.

Under FSDP2 (`torch.distributed.fsdp.fully_shard`) every layer's weights are gathered by FSDP's own hooks while it runs, so what
a layer reads and writes, and the gradients that come back, are whole on every rank, and no device ever holds the whole model.
All ranks run the same batches then, since a layer runs on all of them or on none. Other ways of sharding are refused by name.
Offers `is_sharded`, `class_name`, `check_same_batches` and `in_shards`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from layercard.errors import DataError, ModelError
from layercard.ranks import gathered, has_process_group, in_lockstep

OTHERWISE = (
    "The probe reads models that lie whole on one device, and models that FSDP2 (`fully_shard`) shards over all ranks. Shard it "
    "so, probe it before it is sharded, or choose layers by depth or by hand, which needs no probe."
)


def is_sharded(model: nn.Module) -> bool:
    """Return whether FSDP2 shards `model`; raise `ModelError` where it is spread or put away in a way that cannot be probed."""
    reason = _why_not(model)
    if reason is not None:
        raise ModelError(f"{reason} {OTHERWISE}")
    return bool(_sharded_modules(model))


def class_name(model: nn.Module) -> str:
    """Return the name of the model's class, without the one that FSDP2 puts before it."""
    if not _sharded_modules(model):
        return type(model).__name__
    from torch.distributed.fsdp import FSDPModule

    return next(kind.__name__ for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))


def check_same_batches(batches: Sequence[Mapping[str, Any]]) -> None:
    """Raise `DataError` on every rank where they do not hold the same batches."""
    digests = gathered(_digest(batches))
    if len(set(digests)) > 1:
        held = "; ".join(f"rank {number}: {digest}" for number, digest in enumerate(digests))
        raise DataError(
            f"The ranks were given different batches to probe (by digest, {held}), and a model that FSDP2 shards runs on all "
            "ranks at once. Give every rank the same batches in the same order; the probe does not need each rank's share."
        )


@contextmanager
def in_shards(model: nn.Module) -> Iterator[None]:
    """Run passes of a model that FSDP2 shards in the block; its weights are in shards before and after."""
    with ExitStack() as undo:
        undo.enter_context(in_lockstep())
        for module in _sharded_modules(model):
            module.reshard()  # a forward without a backward leaves the outermost weights whole
            undo.callback(module.reshard)
        yield


def _sharded_modules(model: nn.Module) -> list[Any]:
    if not has_process_group():  # nothing is sharded, and the import takes a while
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _why_not(model: nn.Module) -> str | None:
    """Say in a sentence how the model is spread, where that cannot be probed."""
    if _in_fsdp1(model):
        return "The model is wrapped by FSDP1 (`FullyShardedDataParallel`), which keeps weights in flat buffers without names."
    parameters = dict(model.named_parameters())
    if parameters and all(parameter.is_meta for parameter in parameters.values()):
        return "The model is on the meta device, without values: it was not loaded here, or was offloaded."
    in_fsdp2 = bool(_sharded_modules(model))
    for name, parameter in parameters.items():
        if hasattr(parameter, "ds_id"):
            return f"`{name}` is partitioned by DeepSpeed ZeRO-3."
        mesh = _mesh(parameter)
        if mesh is not None and (not in_fsdp2 or _shards(parameter) > 1):
            return (
                f"`{name}` is split by tensor parallelism, so activations inside the layers are not whole on any rank."
            )
        if mesh is not None and parameter.device.type != mesh.device_type:
            return f"`{name}` is offloaded to {parameter.device} by FSDP2's `CPUOffloadPolicy`."
    return None


def _in_fsdp1(model: nn.Module) -> bool:
    if not has_process_group():
        return False
    from torch.distributed.fsdp import FullyShardedDataParallel

    return any(isinstance(module, FullyShardedDataParallel) for module in model.modules())


def _mesh(parameter: Any) -> Any:
    return parameter.device_mesh if hasattr(parameter, "device_mesh") else None


def _shards(parameter: Any) -> int:
    return sum(placement.is_shard() for placement in parameter.placements)


def _digest(batches: Sequence[Mapping[str, Any]]) -> str:
    found = hashlib.sha256()
    for batch in batches:
        for name in sorted(batch):
            found.update(f"{name} {_described(batch[name])}".encode())
    return found.hexdigest()[:8]


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    values = value.detach().cpu().contiguous()
    if values.dtype == torch.bfloat16:
        values = values.float()
    return f"{list(values.shape)} {hashlib.sha256(values.numpy().tobytes()).hexdigest()}"
