"""Ranks that probe copies in shards of models that each of them holds whole. Arguments: the folder, and what to do.

copied    Each rank probes every model alone, before there are other processes, and then a copy of it in shards.
failing   The copy cannot be made on rank 1.
refused   A device holds too little for the model, and no copy in shards may be probed.

Each rank writes what it found, what became of the model and of the copy, and what was said, to <what>-<rank>.json.
"""

import gc
import json
import os
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration, Trainer

from adapted import adapted, assert_same, fingerprint, lora_config, with_adapters
from layercard import place
from layercard.anatomy.layers import find_layers
from layercard.errors import LayercardError
from layercard.pipeline.before import room
from layercard.probing.run import run_probe
from layercard.probing.shard_copy import sharded_copy
from layercard.ranks import rank
from peft_matrix.bases import nf4
from sharding import FSDP2, shard_on_cpu
from tiny import collate, tiny_examples, tiny_model
from trainers import LONG, Rows, arguments

CPU = torch.device("cpu")
NEEDS = ("gradients", "mean_gradient", "energy", "attention_norms", "representations")
FIELDS = ("gradient_norm", "module_gradient_norm", "norm_of_mean_gradient", "energy", "attention_input_norm", "cka")


def t5():
    sizes = {"vocab_size": 120, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4}
    torch.manual_seed(0)
    return T5ForConditionalGeneration(T5Config(**sizes, num_layers=4, num_decoder_layers=4, decoder_start_token_id=0))


MODELS = {
    "llama in bfloat16, adapters in float32": (lambda: adapted("llama", dtype=torch.bfloat16), None),
    "gemma3, tied": (lambda: adapted("gemma3"), None),
    "gpt2 without adapters, tied": (lambda: tiny_model("gpt2"), None),
    "llama, dynamic positions": (
        lambda: tiny_model("llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
        None,
    ),
    "t5, two stacks": (t5, "decoder.block"),
}


def batches(model):
    found = [collate(tiny_examples(4, seed=i)) for i in range(3)]
    if isinstance(model, T5ForConditionalGeneration):
        return [{**batch, "labels": batch["input_ids"][:, :5].contiguous()} for batch in found]
    return found


def probed(model, stack):
    statistics = run_probe(model, batches(model), stack=stack, needs=NEEDS)
    return {name: np.nan_to_num(getattr(statistics, name)).tolist() for name in FIELDS} | {"model": statistics.model}


def seen_of(model):
    """All that a probe must leave alone, with the memory that each tensor lies in."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {
        "tensors": [(name, id(t), t.data_ptr(), t.requires_grad, t.grad is None, type(t)) for name, t in tensors],
        "buffers": {name: buffer.clone() for name, buffer in model.named_buffers()},
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), type(m)) for m in model.modules()],
        "settings": str(model.config),
        "random": torch.get_rng_state().tolist(),
    }


def assert_untouched(model, before):
    now = seen_of(model)
    assert all(torch.equal(value, now["buffers"][name]) for name, value in before["buffers"].items())
    assert {**now, "buffers": None} == {**before, "buffers": None}


def whole_at_once(stack):
    """Count, whenever a layer runs, the layers whose weights are whole then; FSDP2's own hook is registered before."""
    counts = []

    def count(*_):
        counts.append(sum(all(not hasattr(p, "to_local") for p in layer.parameters()) for layer in stack.layers))

    for layer in stack.layers:
        layer.register_forward_pre_hook(count)
    return counts


def copied_and_probed(model, stack):
    copied, layers = sharded_copy(model, stack, CPU)
    mine = sum(p.to_local().numel() for p in copied.parameters()) / sum(p.numel() for p in model.parameters())
    counts = whole_at_once(layers)
    return probed(copied, layers) | {"share": mine, "whole layers at once": max(counts)}, weakref.ref(copied)


def compare(name, model, path, alone):
    stack = find_layers(model, path=path)
    before, has_adapters = seen_of(model), hasattr(model, "peft_config")
    values = fingerprint(model) if has_adapters else {n: v.clone() for n, v in model.state_dict().items()}
    shards, copied = copied_and_probed(model, stack)
    assert_untouched(model, before)
    if has_adapters:
        assert_same(values, fingerprint(model))
    else:
        assert all(torch.equal(v, model.state_dict()[n]) for n, v in values.items())
    gc.collect()
    return {"alone": alone, "shards": shards, "gone": copied() is None}


def refused(folder, lora_layers, *, model=None, **changes):
    """Return what `place` says where the training device has the bytes of the model free, and no more."""
    args = arguments(folder, ddp_backend="gloo", max_steps=LONG, **changes)
    if changes:
        shard_on_cpu(args)
    trainer = Trainer(model or adapted("llama"), args, train_dataset=Rows(tiny_examples(40)), data_collator=collate)
    size = sum(p.numel() * p.element_size() for p in trainer.model.parameters())
    room.free_bytes = lambda device: size
    try:
        return ",".join(map(str, place(trainer, lora_layers=lora_layers, guard=False).layers))
    except LayercardError as error:
        return f"{type(error).__name__}: {error}"


def refusals(folder):
    own = folder / f"rank{os.environ['RANK']}"  # before there are processes that know of each other
    quantized = with_adapters(nf4(own), lora_config("llama"))
    return {
        "not by FSDP2": refused(own / "ddp", "low"),
        "no room": refused(own / "room", "low", **FSDP2),
        "4-bit": refused(own / "nf4", "low", model=quantized, **FSDP2),
        "no score": refused(own / "auto", "auto", **FSDP2),
    }


if __name__ == "__main__":
    if sys.argv[2] == "copied":
        models = {name: (make(), path) for name, (make, path) in MODELS.items()}
        alone = {name: probed(model, find_layers(model, path=path)) for name, (model, path) in models.items()}
        dist.init_process_group("gloo")
        told = {name: compare(name, model, path, alone[name]) for name, (model, path) in models.items()}
    elif sys.argv[2] == "refused":
        told = refusals(Path(sys.argv[1]))
    else:
        dist.init_process_group("gloo")
        model = tiny_model("llama")
        if rank() == 1:
            model.lock = threading.Lock()  # nothing copies it
        try:
            told = {"error": None, "copied": isinstance(sharded_copy(model, find_layers(model), CPU)[0], nn.Module)}
        except LayercardError as error:
            told = {"error": type(error).__name__, "message": str(error)}
    Path(sys.argv[1], f"{sys.argv[2]}-{rank()}.json").write_text(json.dumps(told))
    dist.destroy_process_group()
