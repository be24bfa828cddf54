"""The prefix cache inside real trainers: shuffling, accumulation, evaluation, resume, packing, 4-bit, two ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from adapted import lora_config, with_adapters
from layercard import place
from layercard.anatomy.gradient_entry import GradientEntry
from layercard.anatomy.layers import find_layers
from layercard.prefix.cache import PrefixCache, PrefixCacheUse
from tiny import collate, tiny_examples, tiny_model, tiny_tokenizer
from trl_names import uses_trl

ENTRY = 2
LAYERS = [2, 3]


class Caching(TrainerCallback):
    """What a placed trainer does, with or without the cache."""

    def __init__(self, model: Any, folder: Path, *, cached: bool) -> None:
        self.stack = find_layers(model)
        self.entry = GradientEntry(model, self.stack, ENTRY)
        self.cache = PrefixCache(model, self.stack, ENTRY, 2**24, folder / "cache") if cached else None
        self.use: PrefixCacheUse | None = None

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.entry.__enter__()
        if self.cache is not None:
            self.cache.__enter__()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        if self.cache is not None:
            self.use = self.cache.use
            self.cache.__exit__(None, None, None)
        self.entry.__exit__(None, None, None)


Result = tuple[dict[str, torch.Tensor], list[float], PrefixCacheUse | None]


def run(trainer: Any, folder: Path, *, cached: bool, resume: str | None = None) -> Result:
    """Weights, evaluation losses and what the cache did."""
    callback = Caching(trainer.model, folder, cached=cached)
    trainer.add_callback(callback)
    set_seed(11)
    trainer.train(resume_from_checkpoint=resume)
    weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert not (folder / "cache").exists()
    return weights, losses, callback.use


def plain(folder: Path, **changes: Any) -> Trainer:
    model = with_adapters(tiny_model("llama"), lora_config("llama", layers_to_transform=LAYERS, lora_dropout=0.1))
    values: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "num_train_epochs": 4,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return Trainer(
        model=model,
        args=TrainingArguments(**(values | changes)),
        train_dataset=tiny_examples(16),
        eval_dataset=tiny_examples(6, seed=9),
        data_collator=collate,
    )


def apart(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max(float((found[n] - w).float().norm() / w.float().norm()) for n, w in expected.items())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_accumulation_steps": 4},
        {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}},
        {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": False}},
        {"eval_strategy": "steps", "eval_steps": 5},
    ],
    ids=["shuffled", "accumulation", "reentrant", "non-reentrant", "evaluation"],
)
def test_weights_and_evaluation_are_those_without_the_cache(changes: dict[str, Any], tmp_path: Path) -> None:
    expected, losses, _ = run(plain(tmp_path, **changes), tmp_path, cached=False)
    found, cached_losses, use = run(plain(tmp_path, **changes), tmp_path, cached=True)
    assert apart(found, expected) < 1e-4
    assert cached_losses == pytest.approx(losses, rel=1e-4)
    assert use is not None
    assert use.off is None
    evaluations = len(losses)
    assert use.misses == 16 + (6 if evaluations else 0)
    assert use.hits == 3 * 16 + 6 * max(0, evaluations - 1)


def test_resumed_after_a_kill(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 10}
    expected, _, _ = run(plain(tmp_path / "whole", **saving), tmp_path, cached=False)
    checkpoint = str(tmp_path / "whole" / "run" / "checkpoint-10")
    found, _, use = run(plain(tmp_path / "resumed"), tmp_path, cached=True, resume=checkpoint)
    assert apart(found, expected) < 1e-4
    assert use is not None
    assert use.misses == 16


def in_nf4(model: Any, path: Path) -> Any:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    model.save_pretrained(path / "base")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    return AutoModelForCausalLM.from_pretrained(path / "base", quantization_config=config, device_map={"": "cpu"})


def sft(folder: Path, *, nf4: bool = False, layers: list[int] = LAYERS, **changes: Any) -> Any:
    """TRL's own defaults: checkpointing on, the loss fused with the head."""
    from trl import SFTConfig, SFTTrainer

    values: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "per_device_train_batch_size": 2,
        "num_train_epochs": 3,
        "learning_rate": 1e-2,
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    model = tiny_model("llama", hidden_size=64, intermediate_size=64)
    torch.manual_seed(5)
    return SFTTrainer(
        model=in_nf4(model, folder) if nf4 else model,
        args=SFTConfig(**(values | changes)),
        train_dataset=Dataset.from_list([{"text": f"row {i} " + "word " * (i % 5)} for i in range(16)]),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], layers_to_transform=layers),
    )


@uses_trl
@pytest.mark.parametrize(
    ("changes", "examples", "bound"),
    [
        ({}, 16, 1e-4),
        ({"packing": True, "max_length": 40}, None, 1e-4),
        ({"padding_free": True, "max_length": None}, 16, 1e-4),
        ({"nf4": True}, 16, 5e-2),  # TRL keeps adapters of quantized models in bf16
        ({"bf16": True}, 16, 5e-2),
    ],
    ids=["defaults", "packing", "padding-free", "nf4", "bf16"],
)
@pytest.mark.filterwarnings("ignore:.*flash.*:UserWarning")
def test_trl(changes: dict[str, Any], examples: int | None, bound: float, tmp_path: Path) -> None:
    expected, _, _ = run(sft(tmp_path, **changes), tmp_path, cached=False)
    found, _, use = run(sft(tmp_path, **changes), tmp_path, cached=True)
    assert apart(found, expected) < bound
    assert use is not None
    assert (use.off, use.bypassed) == (None, {})
    assert use.hits == 2 * use.misses
    if examples is not None:
        assert use.misses == examples


@uses_trl
@pytest.mark.parametrize(
    ("changes", "bound"),
    [
        ({}, 1e-4),
        ({"packing": True, "max_length": 40}, 1e-4),
        ({"padding_free": True, "max_length": None}, 1e-4),
        ({"nf4": True}, 5e-2),
        ({"bf16": True}, 5e-2),
    ],
    ids=["defaults", "packing", "padding-free", "nf4", "bf16"],
)
@pytest.mark.filterwarnings("ignore:.*flash.*:UserWarning")
def test_trl_rolls_forward_where_a_schedule_rises(changes: dict[str, Any], bound: float, tmp_path: Path) -> None:
    """Three epochs; in the second and the third the entry is a layer higher."""
    found, uses = [], []
    for cache in ("off", "1MiB"):
        trainer = sft(tmp_path / cache, layers=[1, 2, 3], **changes)
        settings = {"prefix_cache": cache, "guard": False, "measure": False}
        run = place(trainer, lora_layers=[1, 2, 3], schedule="0.34:0.34, 0.67:0.67", **settings)
        set_seed(11)
        trainer.train()
        found.append({name: p.detach().clone() for name, p in trainer.model.named_parameters() if "lora_" in name})
        uses.append(run.report.prefix_cache)
    assert apart(found[1], found[0]) < bound
    assert (uses[1]["off"], uses[1]["bypassed"], uses[1]["misses"]) == (None, {}, 0)
    assert uses[1]["rolled"] > uses[1]["hits"]


def dpo(folder: Path) -> Any:
    from trl import DPOConfig, DPOTrainer

    rows = [{"prompt": f"{i}+{i}=", "chosen": str(2 * i), "rejected": "x" * (1 + i % 4)} for i in range(16)]
    return DPOTrainer(
        tiny_model("llama"),
        args=DPOConfig(
            output_dir=str(folder / "run"), num_train_epochs=1, per_device_train_batch_size=4, use_cpu=True, bf16=False,
            report_to=[], save_strategy="no", disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
    )  # fmt: skip


@uses_trl
@pytest.mark.parametrize("kind", ["pairs", "padding-free", "packed"])
@pytest.mark.filterwarnings("ignore:.*flash.*:UserWarning")
def test_what_an_epoch_needs_is_told_by_the_rows_of_the_data(kind: str, tmp_path: Path) -> None:
    """A batch of pairs has two rows for each; one that is padding-free or packed has one row for all of its examples."""
    changes = {
        "padding-free": {"padding_free": True, "max_length": None, "per_device_train_batch_size": 4},
        "packed": {"packing": True, "max_length": 40},
    }
    trainer = dpo(tmp_path) if kind == "pairs" else sft(tmp_path, num_train_epochs=1, **changes[kind])
    run = place(trainer, lora_layers=[2, 3], prefix_cache="on", guard=False, measure=False)
    trainer.train()
    use = run.report.prefix_cache
    assert use["projected_bytes"] == pytest.approx(use["bytes_in_memory"], rel=0.1)


def test_two_ranks_each_with_a_cache_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    tests = Path(__file__).parents[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(tests), *sys.path])}
    worker = [str(tests / "prefix" / "cached_ranks.py"), str(tmp_path)]
    done = subprocess.run([*command, *worker], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert apart(found["cached"], found["expected"]) < 1e-4
        assert found["hits"] > 0
        assert found["hits"] + found["misses"] == 4 * 8
