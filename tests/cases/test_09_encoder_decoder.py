"""Encoder-decoders with `Seq2SeqTrainer` and `DataCollatorForSeq2Seq`: labels are the decoder's, and every row counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kinds import KINDS, build, heard, oracle, rows
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments

import layercard
from layercard.anatomy.layers import find_layers
from tiny import VOCAB, tiny_tokenizer
from trainers import Rows, StopAfter

LENGTHS = (3, 5, 7, 9)
T5, BART, WHISPER = "T5 decoder", "BART decoder", "Whisper decoder"


def examples_of(count: int, source: int | None = None) -> list[dict[str, Any]]:
    """Targets of 3, 5, 7 and 9 tokens; sources of mixed lengths, or all of `source` tokens."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for number in range(count):
        length = source or 4 + number % 5
        text, target = (
            torch.randint(4, VOCAB - 21, (n,), generator=generator).tolist() for n in (length, LENGTHS[number % 4])
        )
        found.append({"input_ids": text, "attention_mask": [1] * length, "labels": target})
    return found


def trainer_of(
    folder: Path, name: str, examples: list[dict[str, Any]], *, batch: int = 4, width: int | None = None
) -> Any:
    """Return a trainer with the collator that people use; `width` pads every row to so many tokens."""
    model = build(KINDS[name])
    args = Seq2SeqTrainingArguments(
        output_dir=str(folder), use_cpu=True, per_device_train_batch_size=batch, max_steps=80, report_to=[], save_strategy="no",
        disable_tqdm=True, logging_steps=1, dataloader_pin_memory=False, remove_unused_columns=False,
    )  # fmt: skip
    padded = DataCollatorForSeq2Seq(tiny_tokenizer(), model=model.get_base_model(), pad_to_multiple_of=width)
    collate = rows if name.startswith("Whisper") else padded
    trainer = Seq2SeqTrainer(model=model, args=args, train_dataset=Rows(examples), data_collator=collate)
    trainer.add_callback(StopAfter(2))
    return trainer


def unpadded(example: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([values]) for name, values in example.items()}


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
@pytest.mark.parametrize("name", [T5, BART])
def test_scores_come_from_all_rows_and_are_those_of_autograd(tmp_path: Path, name: str, stack: str) -> None:
    path = f"{stack}.{'block' if name == T5 else 'layers'}"
    examples = examples_of(16)
    trainer = trainer_of(tmp_path, name, examples)
    layers = find_layers(trainer.model, path=path).layers
    expected = oracle(trainer.model, [unpadded(example) for example in examples], layers)
    run = layercard.place(trainer, lora_layers="high", layers_path=path, probe_examples=16)
    assert run.statistics is not None and run.scores is not None
    assert run.statistics.examples == 16
    np.testing.assert_allclose(run.scores["resnorm"].raw, expected, rtol=2e-5)


def test_one_batch_of_all_lengths_is_enough(tmp_path: Path) -> None:
    run = layercard.place(trainer_of(tmp_path, T5, examples_of(4)), lora_layers="high", layers_path="decoder.block")
    assert run.statistics is not None and run.statistics.examples == 4


@pytest.mark.parametrize("name", [T5, BART])
def test_a_source_as_wide_as_the_target_changes_nothing(tmp_path: Path, name: str) -> None:
    """Nine source tokens beside nine labels, and the same rows padded to sixteen of each, or one at a time."""
    path = "decoder.block" if name == T5 else "decoder.layers"
    found = []
    for width, batch in ((None, 4), (16, 4), (None, 1)):
        trainer = trainer_of(tmp_path / f"{width}-{batch}", name, examples_of(8, source=9), batch=batch, width=width)
        run = layercard.place(trainer, lora_layers="high", layers_path=path, probe_examples=8)
        assert run.scores is not None
        found.append(run.scores["resnorm"].raw)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)
    np.testing.assert_allclose(found[2], found[0], rtol=1e-5)


@pytest.mark.parametrize("name", [T5, BART, WHISPER])
@pytest.mark.parametrize("lora_layers", ["auto", "last", [1], "high"])
def test_it_trains_under_every_strategy_with_the_guard(tmp_path: Path, name: str, lora_layers: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    examples = examples_of(40) if name != WHISPER else [heard(generator, 0) for _ in range(40)]
    path = "decoder.block" if name == T5 else "decoder.layers"
    trainer = trainer_of(tmp_path, name, examples)
    run = layercard.place(trainer, lora_layers=lora_layers, layers_path=path, guard_budget=0.5, measure_budget=0.5)
    trainer.train()
    assert run.report.quality["reason"] is None or run.report.quality["heldout_loss"] is not None
