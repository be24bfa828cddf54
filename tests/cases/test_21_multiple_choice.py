"""Multiple choice (rows, choices, tokens), question answering and token classification are probed and trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kinds import KINDS, build, oracle, rows
from transformers import Trainer

import layercard
from layercard.anatomy.layers import find_layers
from trainers import Rows, StopAfter, arguments


def trainer_of(folder: Path, name: str) -> tuple[Any, list[dict[str, Any]]]:
    kind = KINDS[name]
    generator = torch.Generator().manual_seed(2)
    examples = [kind.example(generator, 3 + number % 6) for number in range(40)]
    trainer = Trainer(
        model=build(kind), args=arguments(folder, max_steps=80, include_num_input_tokens_seen="no"),
        train_dataset=Rows(examples), data_collator=rows,
    )  # fmt: skip
    trainer.add_callback(StopAfter(2))
    return trainer, examples


TASKS = ["multiple choice", "question answering", "token classification"]


@pytest.mark.parametrize("name", TASKS)
def test_scores_are_those_of_autograd(tmp_path: Path, name: str) -> None:
    trainer, examples = trainer_of(tmp_path, name)
    layers = find_layers(trainer.model).layers
    expected = oracle(trainer.model, [rows([example]) for example in examples], layers)
    run = layercard.place(trainer, lora_layers="high", probe_examples=len(examples))
    assert run.scores is not None
    np.testing.assert_allclose(run.scores["resnorm"].raw, expected, rtol=2e-5)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("lora_layers", ["auto", "last", [1]])
def test_it_trains_under_every_strategy_with_the_guard(tmp_path: Path, name: str, lora_layers: Any) -> None:
    trainer, _ = trainer_of(tmp_path, name)
    run = layercard.place(trainer, lora_layers=lora_layers, guard_budget=0.5, measure_budget=0.5)
    trainer.train()
    assert run.report.quality["heldout_loss"] is not None, run.report.quality["reason"]
