"""One rank of runs of TRL's trainers. Arguments: the folder, the hosts as `sft,dpo`, and how
weights are spread, one of `WAYS`.

Each rank gives its trainers an output directory of its own, <host>/out<rank>, and writes what it placed, probed and trained to
<host>/rank<rank>.json.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from accelerate.state import DistributedType, PartialState
from accelerate.utils import FullyShardedDataParallelPlugin
from datasets import Dataset
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from layercard import place
from layercard.ranks import rank, ranks
from tiny import tiny_model, tiny_tokenizer
from trainers import LONG, StopAfter, trained

PAIRS = [
    {"prompt": f"what is {i}", "chosen": f"it is {i * i}", "rejected": "who knows, " * (1 + i % 3)} for i in range(24)
]
SUMS = [{"prompt": f"add {i} and {i}: ", "completion": f"{i + i}{'!' * (i % 5)}"} for i in range(24)]
HOSTS = {"sft": (SFTTrainer, SFTConfig, SUMS, "low"), "dpo": (DPOTrainer, DPOConfig, PAIRS, "high")}

AUTO = {"train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto", "train_batch_size": "auto"}
WAYS = {
    "ddp": {},
    "fsdp2": {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": "LlamaDecoderLayer"}},
    "zero2": {"deepspeed": {"zero_optimization": {"stage": 2}, **AUTO}},
    "zero3": {"deepspeed": {"zero_optimization": {"stage": 3}, **AUTO}},
}


def make_trainer(host, folder, way, *, whole=None):
    kind, arguments, rows, _ = HOSTS[host]
    args = arguments(
        output_dir=str(folder), use_cpu=True, bf16=False, max_steps=LONG, per_device_train_batch_size=2, report_to=[],
        learning_rate=1e-2, logging_steps=1, save_strategy="no", max_length=48, disable_tqdm=True,
        ddp_backend="gloo" if "RANK" in os.environ else None, **WAYS[way],
    )  # fmt: skip
    if way == "fsdp2":
        shard_on_cpu(args)
    trainer = kind(
        whole or tiny_model("llama"), args=args, train_dataset=Dataset.from_list(rows), processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"),
    )  # fmt: skip
    trainer.add_callback(StopAfter(3))
    return trainer


def shard_on_cpu(args):
    """Let accelerate take these processes for such as it shards, which it does on accelerators alone; the rest is its own."""
    state = Accelerator(cpu=True).state
    state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    state.fsdp_plugin = FullyShardedDataParallelPlugin(**args.fsdp_plugin_args)


def whole(value):
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).tolist()


def run(host, folder, way):
    trainer = make_trainer(host, folder / f"out{rank()}", way)
    run = place(trainer, lora_layers=HOSTS[host][-1], fraction=0.5, measure_budget=0.5, guard=False)
    statistics = run.statistics
    trainer.train()
    fields = ("gradient_norm", "module_gradient_norm", "energy")
    return {
        "ranks": ranks(),
        "layers": list(run.layers),
        "examples": statistics.examples,
        "statistics": {name: np.nan_to_num(getattr(statistics, name)).tolist() for name in fields},
        "trained": {n.replace("module.", ""): whole(v) for n, v in trained(trainer.model).items()},
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "backward": list(run.report.backward_layers),
        "pairs": run.report.pairs,
        "unavailable": dict(run.report.unavailable),
        "sharded": any(hasattr(p, "full_tensor") for p in trainer.model.parameters()),
    }


if __name__ == "__main__":
    way = sys.argv[3] if len(sys.argv) > 3 else "ddp"
    for host in sys.argv[2].split(","):
        folder = Path(sys.argv[1]) / host
        folder.mkdir(exist_ok=True)
        told = run(host, folder, way)
        (folder / f"rank{rank()}.json").write_text(json.dumps(told))
