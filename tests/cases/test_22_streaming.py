"""Streams: the rows of training are those of a run without layercard; what can be read once is never read for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, interleave_datasets
from peft import LoraConfig
from transformers import Trainer
from trl import SFTConfig, SFTTrainer

import layercard
from adapted import lora_config, with_adapters
from layercard.errors import DataError
from tiny import collate, tiny_examples, tiny_model, tiny_tokenizer
from trainers import Rows, StopAfter, arguments
from trl_names import uses_trl

STEPS = 10


class Once(torch.utils.data.IterableDataset):
    """Its `__iter__` returns itself, as a reader of a socket or a queue would."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = iter(rows)
        self.given = 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        row = next(self.rows)
        self.given += 1
        return row


class Again(torch.utils.data.IterableDataset):
    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows)


class Seen(Trainer):
    """Keeps the rows that its training steps are given."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: list[list[int]] = []

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        batches, items = super().get_batch_samples(*args, **kwargs)
        self.seen += [ids.tolist() for batch in batches for ids in batch["input_ids"]]
        return batches, items


class SeenSFT(Seen, SFTTrainer):
    pass


def plain(folder: Path, dataset: Any, **changes: Any) -> Any:
    trainer = Seen(
        model=with_adapters(tiny_model("llama"), lora_config("llama")),
        args=arguments(folder, **{"max_steps": 80, **changes}), train_dataset=dataset, data_collator=collate,
    )  # fmt: skip
    trainer.add_callback(StopAfter(STEPS))
    return trainer


def sft(folder: Path, dataset: Any, **changes: Any) -> Any:
    args = SFTConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, per_device_train_batch_size=2, max_steps=80, report_to=[],
        save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False, max_length=40, **changes,
    )  # fmt: skip
    trainer = SeenSFT(
        model=tiny_model("llama"), args=args, train_dataset=dataset, processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
        formatting_func=lambda row: f"{row['question']} = {row['answer']}",
    )  # fmt: skip
    trainer.add_callback(StopAfter(STEPS))
    return trainer


def questions(count: int, sign: str = "+") -> Any:
    rows = [{"question": f"{i} {sign} {i * i}", "answer": f"{i + i * i}"} for i in range(count)]
    return Dataset.from_list(rows).to_iterable_dataset()


@uses_trl
@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
def test_sft_reads_the_same_rows_with_and_without_layercard(tmp_path: Path, packing: bool, mixed: bool) -> None:
    found = []
    for place in (False, True):
        stream = interleave_datasets([questions(60), questions(60, "-")]) if mixed else questions(120)
        trainer = sft(tmp_path / f"{place}", stream, packing=packing)
        if place:
            layercard.place(trainer, lora_layers="auto", guard_budget=0.5, measure_budget=0.5)
        trainer.train()
        found.append(trainer.seen)
    assert len(found[0]) >= STEPS  # a packed batch is one row
    assert found[0] == found[1]


TIMED, TRIED = {"measure_budget": 0.5}, {"guard_budget": 0.5}


@pytest.mark.parametrize("lora_layers", ["auto", "last", [2, 3]])
@pytest.mark.parametrize("budgets", [TIMED, TRIED, TIMED | TRIED])
def test_what_can_be_read_once_is_trained_on_untimed_and_untried(
    tmp_path: Path, budgets: dict[str, float], lora_layers: Any
) -> None:
    rows = tiny_examples(400)
    trainer = plain(tmp_path, Once(rows))
    run = layercard.place(trainer, lora_layers=lora_layers, **budgets)
    assert trainer.train_dataset.given == 0
    trainer.train()
    assert trainer.seen == [ids for row in _batches(rows) for ids in row]
    report = run.report
    assert report.step_speedup is None
    assert "can be read only once" in report.unavailable["step_speedup"]
    assert "can be read only once" in report.quality["reason"]


def _batches(rows: list[dict[str, Any]]) -> list[list[list[int]]]:
    return [collate(rows[i : i + 2])["input_ids"].tolist() for i in range(0, 2 * STEPS, 2)]


@pytest.mark.parametrize("lora_layers", ["high", "mid"])
def test_a_score_of_what_can_be_read_once_is_refused_with_advice(tmp_path: Path, lora_layers: str) -> None:
    trainer = plain(tmp_path, Once(tiny_examples(40)))
    with pytest.raises(DataError, match=r"read only once.*`lora_layers: uniform`"):
        layercard.place(trainer, lora_layers=lora_layers)
    assert trainer.train_dataset.given == 0


def test_an_eval_set_that_can_be_read_once_is_left_alone(tmp_path: Path) -> None:
    trainer = plain(tmp_path, Rows(tiny_examples(60)))
    trainer.eval_dataset = Once(tiny_examples(20))
    run = layercard.place(trainer, lora_layers=[2, 3], guard_budget=0.5)
    trainer.train()
    assert trainer.eval_dataset.given == 0
    assert run.report.quality["heldout_from"] == "training set"


@pytest.mark.parametrize("lora_layers", ["auto", "high", [2, 3]])
def test_a_stream_that_starts_anew_is_probed_timed_and_tried(tmp_path: Path, lora_layers: Any) -> None:
    trainer = plain(tmp_path, Again(tiny_examples(400)))
    run = layercard.place(trainer, lora_layers=lora_layers, guard_budget=0.5, measure_budget=0.5)
    trainer.train()
    assert run.report.quality["heldout_loss"] is not None, run.report.quality["reason"]
    assert run.report.step_speedup is not None, run.report.unavailable
