"""Ranks that probe models which FSDP2 shards. Argument: the folder; each rank writes what it found to sharded-<rank>.json.

In a single process, the same models unsharded, to whole-0.json. With a second argument, `sharded`, or `failing` on one rank.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

import layercard
from adapted import adapted
from layercard.anatomy.adapters import check_narrowable
from layercard.errors import DataError, ModelError
from layercard.pipeline.probe import score
from layercard.ranks import rank, ranks
from tiny import collate, tiny_examples, tiny_model

NAMES = ["resnorm", "resnorm_algorithm1", "cka", "activation", "effective_rank", "set_gain"]
FAMILIES = ["llama", "gpt2", "bert"]


def sharded(model, **options):
    layers = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
    for layer in layers:
        fully_shard(layer, **options)
    return fully_shard(model, **options)


def batches(family, seed=0):
    return [collate(tiny_examples(4, seed=seed + i, encoder=family == "bert")) for i in range(3)]


def shards_of(model):
    return {n: (p.to_local().clone(), p.requires_grad, p.grad) for n, p in model.named_parameters()}


def scores(model, family, checkpointing=None):
    statistics = layercard.probe(model, batches(family), scores=NAMES, checkpointing=checkpointing)
    return {name: score(statistics, name).raw.tolist() for name in NAMES} | {"examples": statistics.examples}


def found():
    told = {}
    for family in FAMILIES:
        bare, lora = tiny_model(family), adapted(family)
        if ranks() > 1:
            bare, lora = sharded(bare), sharded(lora)
            before = shards_of(lora)
        told[family], told[f"{family} adapters"] = scores(bare, family), scores(lora, family)
        if ranks() > 1:
            after = shards_of(lora)
            assert all((after[n][0] == v).all() and after[n][1:] == (r, g) for n, (v, r, g) in before.items())
    checkpointed = tiny_model("llama")
    checkpointed = sharded(checkpointed) if ranks() > 1 else checkpointed
    return told | {"checkpointed": scores(checkpointed, "llama", checkpointing=True)}


def refused(kind, ask):
    try:
        ask()
    except kind as error:
        return str(error)
    return "not refused"


def refusals():
    def probed(model, seed=0):
        return lambda: layercard.probe(model, batches("llama", seed))

    mesh = dist.device_mesh.init_device_mesh("cpu", (ranks(),))
    flat = FullyShardedDataParallel(tiny_model("llama"), use_orig_params=True, device_id=torch.device("cpu"))
    split = tiny_model("llama")
    parallelize_module(split, mesh, {"model.layers.*.mlp.up_proj": ColwiseParallel()})
    return {
        "FSDP1": refused(ModelError, probed(flat)),
        "tensor parallel": refused(ModelError, probed(split)),
        "meta": refused(ModelError, probed(tiny_model("llama").to("meta"))),
        "other batches": refused(DataError, probed(sharded(tiny_model("llama")), seed=10 * rank())),
        "placed late": refused(ModelError, lambda: check_narrowable(sharded(adapted("llama")))),
    }


def lost(model, inputs):
    if rank() == 1:
        raise RuntimeError("the loss went away")
    return model(**inputs).loss


if __name__ == "__main__":
    name = "whole"
    if len(sys.argv) > 2:
        dist.init_process_group("gloo")
        name = sys.argv[2]
    if name == "failing":
        layercard.probe(sharded(tiny_model("llama")), batches("llama"), loss=lost, objective="next_token")
    told = {"scores": found(), "refusals": refusals() if ranks() > 1 else {}}
    Path(sys.argv[1], f"{name}-{rank()}.json").write_text(json.dumps(told))
    if ranks() > 1:
        dist.destroy_process_group()
