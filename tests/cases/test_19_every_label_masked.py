"""A run in which no label is left is refused before training, under every strategy; some masked rows hurt nothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import Trainer
from trl import SFTConfig, SFTTrainer

import layercard
from adapted import lora_config, with_adapters
from layercard.errors import DataError
from layercard_trl.host import SFTHost
from tiny import collate, tiny_examples, tiny_model, tiny_tokenizer
from trainers import Rows, StopAfter, arguments
from trl_names import uses_trl

pytestmark = uses_trl
EVERY_WAY = ["auto", "high", "last", "uniform", [3]]


def masked(example: dict[str, Any]) -> dict[str, Any]:
    return {**example, "labels": [-100] * len(example["input_ids"])}


def plain(
    folder: Path, rows: list[dict[str, Any]], held_out: list[dict[str, Any]] | None = None, **changes: Any
) -> Any:
    trainer = Trainer(
        model=with_adapters(tiny_model("llama"), lora_config("llama")), args=arguments(folder, **{"max_steps": 80, **changes}),
        train_dataset=Rows(rows), eval_dataset=Rows(held_out) if held_out else None, data_collator=collate,
    )  # fmt: skip
    trainer.add_callback(StopAfter(2))
    return trainer


def sft(
    folder: Path, *, rows: list[dict[str, Any]], held_out: list[dict[str, Any]] | None = None, **changes: Any
) -> Any:
    values = {
        "output_dir": str(folder), "use_cpu": True, "bf16": False, "per_device_train_batch_size": 2, "max_steps": 80,
        "report_to": [], "save_strategy": "no", "disable_tqdm": True, "dataloader_pin_memory": False, "max_length": 64,
    }  # fmt: skip
    trainer = SFTTrainer(
        model=tiny_model("llama", max_position_embeddings=128), args=SFTConfig(**(values | changes)),
        train_dataset=Dataset.from_list(rows), eval_dataset=Dataset.from_list(held_out) if held_out else None,
        processing_class=tiny_tokenizer(), peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
    )  # fmt: skip
    trainer.add_callback(StopAfter(2))
    return trainer


def pairs(count: int, *, long: int = 0) -> list[dict[str, str]]:
    """Prompts and completions; the first `long` prompts leave no room within 20 tokens."""
    return [{"prompt": "sum of them " * (4 if i < long else 1), "completion": f"is {i}"} for i in range(count)]


@pytest.mark.parametrize("lora_layers", EVERY_WAY)
@pytest.mark.parametrize("held_out", [None, tiny_examples(12, seed=3)])
def test_a_plain_trainer_with_nothing_to_learn_is_refused(tmp_path: Path, lora_layers: Any, held_out: Any) -> None:
    trainer = plain(tmp_path, [masked(example) for example in tiny_examples(30)], held_out)
    with pytest.raises(DataError, match=r"None of 30 training examples has a label that is not masked"):
        layercard.place(trainer, lora_layers=lora_layers)
    assert not (tmp_path / "placement.json").exists()


@pytest.mark.parametrize("lora_layers", EVERY_WAY)
def test_only_the_first_token_labelled_is_nothing_to_learn(tmp_path: Path, lora_layers: Any) -> None:
    rows = [{**e, "labels": [e["input_ids"][0], *[-100] * (len(e["input_ids"]) - 1)]} for e in tiny_examples(30)]
    with pytest.raises(DataError, match="is not masked"):
        layercard.place(plain(tmp_path, rows), lora_layers=lora_layers)


@pytest.mark.parametrize("lora_layers", EVERY_WAY)
def test_a_few_labelled_rows_among_many_are_found(tmp_path: Path, lora_layers: Any) -> None:
    examples = tiny_examples(300)
    rows = [example if number % 50 == 0 else masked(example) for number, example in enumerate(examples)]
    trainer = plain(tmp_path, rows)
    layercard.place(trainer, lora_layers=lora_layers)
    trainer.train()


@pytest.mark.parametrize("lora_layers", EVERY_WAY)
@pytest.mark.parametrize("held_out", [None, pairs(12)])
def test_sft_says_that_its_own_preparation_dropped_every_row(tmp_path: Path, lora_layers: Any, held_out: Any) -> None:
    trainer = sft(tmp_path, rows=pairs(12), held_out=held_out, max_length=8)
    assert len(trainer.train_dataset) == 0
    with pytest.raises(DataError, match=r"no row left. TRL drops every row.*`max_length` \(8\).*Raise `max_length`"):
        layercard.place(trainer, lora_layers=lora_layers)


def test_sft_with_labels_of_the_users_own_is_looked_at_too(tmp_path: Path) -> None:
    rows = [masked(example) for example in tiny_examples(12)]
    trainer = sft(tmp_path, rows=rows, max_length=None)
    with pytest.raises(DataError, match="None of 12 training examples"):
        layercard.place(trainer, lora_layers="last")


@pytest.mark.parametrize("lora_layers", ["auto", "high", "last", [3]])
def test_sft_with_half_of_the_rows_masked_trains(tmp_path: Path, lora_layers: Any) -> None:
    trainer = sft(tmp_path, rows=pairs(40, long=20), max_length=20)
    run = layercard.place(trainer, lora_layers=lora_layers, guard_budget=0.5)
    trainer.train()
    assert run.report.quality["judged_by"] in ("negative log-likelihood of the labels", None)


@pytest.mark.parametrize("kind", ["plain", "sft"])
def test_held_out_rows_without_labels_do_not_judge(tmp_path: Path, kind: str) -> None:
    examples = tiny_examples(20, seed=5)
    held_out = [masked(example) if number % 2 else example for number, example in enumerate(examples)]
    build = plain if kind == "plain" else lambda folder, rows, held, **k: sft(folder, rows=rows, held_out=held, **k)
    trainer = build(tmp_path, tiny_examples(40), held_out, **({} if kind == "plain" else {"max_length": None}))
    run = layercard.place(trainer, lora_layers=[2, 3], guard_budget=0.5)
    trainer.train()
    quality = run.report.quality
    assert quality["examples"] == 10, quality["reason"]
    assert all(math.isfinite(loss) for loss in quality["heldout_loss"].values())


def test_the_loss_of_a_row_without_labels_is_undefined_and_not_zero(tmp_path: Path) -> None:
    trainer = sft(tmp_path, rows=pairs(12))
    host = SFTHost(trainer)
    with torch.no_grad():
        assert math.isnan(host.loss(host.model, collate([masked(tiny_examples(1)[0])])).item())
