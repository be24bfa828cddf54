"""Where a probe finds room for the model: as it lies, whole on the device that trains it, or in shards over all ranks.

Under FSDP and DeepSpeed the model is still on the CPU before `train()`. It is moved to the training device for the probe; where
it does not fit there and FSDP2 will shard it, a copy is sharded likewise, which is let go after the probe. Offers
`probed_where_it_fits` and `ways_out`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import torch

from layercard.errors import HostError
from layercard.probing.shard_copy import bytes_in_shards, sharded_copy, why_not_in_shards
from layercard.ranks import gathered, ranks
from layercard.sizes import bytes_text

if TYPE_CHECKING:
    from torch import nn

    from layercard.anatomy.layers import LayerStack
    from layercard.hosts.protocol import Host
    from layercard.probing.statistics import LayerStatistics

Probe: TypeAlias = "Callable[[nn.Module, LayerStack], LayerStatistics]"
USABLE = 0.8
"""The share of a device's free memory that weights may take: the rest is for activations."""


@dataclass(frozen=True)
class _Room:
    """The bytes of the model's weights, and those that are free on the training device with the least."""

    size: int
    free: int
    device: str

    @property
    def fits(self) -> bool:
        return self.size <= USABLE * self.free

    def __str__(self) -> str:
        return f"The unsharded model has {bytes_text(self.size)} and {self.device} has {bytes_text(self.free)} free"


def probed_where_it_fits(host: Host, stack: LayerStack, probe: Probe, *, in_shards: bool) -> LayerStatistics:
    """Return what `probe(model, stack)` returns of the host's model, or of a copy in shards where no device holds it whole.

    Every rank has to ask, and all of them take the same way. `in_shards` says whether the statistics are worth that: all ranks
    run all batches then. The model is left where it was. Raises `HostError` where there is no room.
    """
    room = _least_room(host)
    if room is None:
        return probe(host.model, stack)
    if room.fits:
        with _moved(host):
            return probe(host.model, stack)
    reason = _why_no_shards(host, stack, room.free, wanted=in_shards)
    if reason is not None:
        raise HostError(f"{room}. So it cannot be probed whole before it is sharded, and {reason} {ways_out(host)}")
    try:
        statistics = probe(*sharded_copy(host.model, stack, host.device))
    finally:
        _let_go()
    found = f"probed in shards over {ranks()} ranks, each of which ran every example. {room}"
    return replace(statistics, notes=(*statistics.notes, found))


def ways_out(host: Host) -> str:
    """Return what to do where a run's model cannot be probed."""
    name = getattr(host.model.config, "_name_or_path", None) or "MODEL"
    return (
        f"Choose the layers beforehand, `layercard plan {name} --dataset DATA -o placement.json`, and give PEFT its `layers` as "
        "`LoraConfig(layers_to_transform=[...])`; or by depth, `lora_layers: last`, which needs no probe. Under FSDP2 on several "
        "ranks (`fsdp_config: {version: 2}`), unquantized, a model that no device holds whole is probed in shards."
    )


def free_bytes(device: torch.device) -> int | None:
    """Return the bytes that are free on an accelerator that a model has to be moved to, None where it need not be moved."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def _least_room(host: Host) -> _Room | None:
    """The room on the rank that has the least; None where the model lies where it trains."""
    parameters, free = list(host.model.parameters()), free_bytes(host.device)
    lies_there = free is None or any(p.device.type != "cpu" for p in parameters)
    size = sum(p.numel() * p.element_size() for p in parameters)
    found = gathered(None if lies_there or free is None else _Room(size, free, str(host.device)))
    rooms = [room for room in found if room is not None]
    return min(rooms, key=lambda room: room.free, default=None)


def _why_no_shards(host: Host, stack: LayerStack, free: int, *, wanted: bool) -> str | None:
    """Say why no copy in shards is probed, so that it goes on from `and`; None where one is."""
    accelerator = vars(host.trainer).get("accelerator")
    if ranks() == 1 or accelerator is None or not accelerator.is_fsdp2:
        over = "one process" if ranks() == 1 else f"{ranks()} processes, and not by FSDP2"
        return f"this run trains it in {over}, so there is nothing to shard it over for the probe."
    if not wanted:
        return "a look that no score needs is not worth a copy in shards."
    reason = why_not_in_shards(host.model, stack)
    if reason is not None:
        return f"not in shards either. {reason}"
    needed = bytes_in_shards(host.model, stack)
    if needed > USABLE * free:
        return f"not in shards either, of which a device needs {bytes_text(needed)} over {ranks()} ranks."
    return None


@contextmanager
def _moved(host: Host) -> Iterator[None]:
    """Hold the model on the device that trains it."""
    host.model.to(host.device)
    try:
        yield
    finally:
        host.model.to("cpu")


def _let_go() -> None:
    """Free a copy in shards now: FSDP2's parts refer to each other in circles."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
