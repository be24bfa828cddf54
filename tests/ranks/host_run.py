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
from datasets import Dataset
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from layercard import place
from layercard.pipeline.before import room
from layercard.ranks import rank, ranks
from sharding import FSDP2, shard_on_cpu
from tiny import tiny_model, tiny_tokenizer
from trainers import LONG, StopAfter, trained

PAIRS = [
    {"prompt": f"what is {i}", "chosen": f"it is {i * i}", "rejected": "who knows, " * (1 + i % 3)} for i in range(24)
]
SUMS = [{"prompt": f"add {i} and {i}: ", "completion": f"{i + i}{'!' * (i % 5)}"} for i in range(24)]
HOSTS = {"sft": (SFTTrainer, SFTConfig, SUMS, "low"), "dpo": (DPOTrainer, DPOConfig, PAIRS, "high")}

AUTO = {"train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto", "train_batch_size": "auto"}
DEEP = dict.fromkeys(("deep", "shards", "broken"), 12)
"""Ways with so many layers that half of them, and the few that FSDP2 holds whole, take clearly less than all."""
WAYS = {
    "ddp": {},
    "fsdp2": FSDP2,
    "deep": {},
    "shards": FSDP2,
    "broken": FSDP2,
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
    if WAYS[way] is FSDP2:
        shard_on_cpu(args)
    trainer = kind(
        whole or tiny_model("llama", num_layers=DEEP.get(way, 4)), args=args,
        train_dataset=Dataset.from_list(rows), processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"),
    )  # fmt: skip
    trainer.add_callback(StopAfter(3))
    return trainer


def short_of_memory(model):
    """Let the second rank's device have room for the model's weights and little beside: the number is all that is not real."""
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    room.free_bytes = lambda device: int(size * (1.2 if rank() == 1 else 100))


def lying(model):
    """Each parameter, by what it is and where it lies; narrowing changes the names."""
    return {(id(p), p.data_ptr(), p.requires_grad) for p in model.parameters()}


def broken(*args):
    raise RuntimeError("the layer went away")


def whole(value):
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).tolist()


def run(host, folder, way):
    trainer = make_trainer(host, folder / f"out{rank()}", way)
    if way in ("shards", "broken"):
        short_of_memory(trainer.model)
    if way == "broken" and rank() == 1:
        trainer.model.base_model.model.model.layers[2].register_forward_pre_hook(broken)
    before = lying(trainer.model)
    run = place(trainer, lora_layers=HOSTS[host][-1], fraction=0.5, measure_budget=0.5, guard=False)
    statistics = run.statistics
    kept = lying(trainer.model)
    trainer.train()
    fields = ("gradient_norm", "module_gradient_norm", "energy")
    return {
        "ranks": ranks(),
        "untouched": kept <= before,  # fewer, without the adapters that were taken out
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
