"""accelerate's FSDP2 on CPUs, where it would train by DDP: what a trainer is told, and the flag that decides."""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator
from accelerate.state import DistributedType, PartialState
from accelerate.utils import FullyShardedDataParallelPlugin

FSDP2 = {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": "LlamaDecoderLayer"}}


def shard_on_cpu(args: Any) -> None:
    """Let accelerate take these processes for such as it shards, which it does on accelerators alone; the rest is its own."""
    state = Accelerator(cpu=True).state
    state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    state.fsdp_plugin = FullyShardedDataParallelPlugin(**args.fsdp_plugin_args)
