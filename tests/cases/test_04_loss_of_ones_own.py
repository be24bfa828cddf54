"""A loss function of one's own that divides by `num_items_in_batch` is called as the trainer's evaluation calls it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import Trainer

import layercard
from adapted import lora_config, with_adapters
from layercard.errors import ProbeError
from layercard.hosts.plain import PlainHost
from tiny import collate, tiny_examples, tiny_model
from trainers import Rows, StopAfter, arguments


def summed(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """Cross-entropy over shifted logits, summed and divided by the count that the trainer gives."""
    logits = outputs["logits"][:, :-1].flatten(0, 1)
    return F.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=-100, reduction="sum") / num_items_in_batch


class Overriding(Trainer):
    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = summed(outputs, labels, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss


class Contrastive(Trainer):
    """Compares the rows of a batch with each other: of one row alone the loss is 0."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(**inputs, output_hidden_states=True)
        hidden = outputs.hidden_states[-1].mean(1)
        loss = F.cross_entropy(hidden @ hidden.T, torch.arange(len(hidden)))
        return (loss, outputs) if return_outputs else loss


def trainer_of(folder: Path, sort: str, **changes: Any) -> Any:
    model = with_adapters(tiny_model("llama"), lora_config("llama", lora_dropout=0.0))
    kind = {"override": Overriding, "contrastive": Contrastive}.get(sort, Trainer)
    if sort == "smoothing":
        changes |= {"label_smoothing_factor": 0.1}
    trainer = kind(
        model=model, args=arguments(folder, **{"max_steps": 80, "per_device_eval_batch_size": 1, **changes}),
        train_dataset=Rows(tiny_examples(60)), eval_dataset=Rows(tiny_examples(20, seed=4)), data_collator=collate,
        compute_loss_func=summed if sort == "function" else None,
    )  # fmt: skip
    trainer.add_callback(StopAfter(2))
    return trainer


SORTS = ["function", "override", "smoothing", "model"]


@pytest.mark.parametrize("sort", SORTS)
def test_losses_are_those_of_the_trainers_own_evaluation(tmp_path: Path, sort: str) -> None:
    trainer = trainer_of(tmp_path, sort)
    host = PlainHost(trainer)
    host.model.eval()
    for row in tiny_examples(4, seed=9):
        expected = trainer.evaluate(Rows([row]))["eval_loss"]
        assert host.heldout_loss(host.model, collate([row])).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("sort", SORTS[:3])
def test_the_probe_scores_the_loss_that_is_trained(tmp_path: Path, sort: str) -> None:
    """All but smoothing are the model's own loss written otherwise, so their scores are the model's own."""
    found = [
        layercard.place(trainer_of(tmp_path / name, name), lora_layers="high", probe_examples=12).scores["resnorm"].raw
        for name in (sort, "model")
    ]
    same = np.allclose(*found, rtol=1e-5)
    assert same == (sort != "smoothing")


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("lora_layers", ["auto", [2, 3]])
def test_it_trains_with_guard_and_timing(tmp_path: Path, sort: str, lora_layers: Any) -> None:
    trainer = trainer_of(tmp_path, sort)
    run = layercard.place(trainer, lora_layers=lora_layers, guard_budget=0.5, measure_budget=0.5)
    trainer.train()
    assert run.report.quality["heldout_loss"] is not None, run.report.quality["reason"]
    assert run.report.quality["judged_by"] == "the trainer's own loss"


def test_a_loss_that_compares_rows_has_no_scores(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="no average of examples"):
        layercard.place(trainer_of(tmp_path, "contrastive"), lora_layers="high")


def test_a_loss_that_compares_rows_is_trained_by_depth_and_not_judged(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, "contrastive")
    run = layercard.place(trainer, lora_layers="last", guard_budget=0.5)
    trainer.train()
    assert run.report.quality["kind"] == "unknown"
    assert "no average of theirs alone" in run.report.quality["reason"]


def test_a_loss_that_fails_on_one_row_says_so_instead_of_stopping_the_training(tmp_path: Path) -> None:
    class Pairs(Contrastive):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if len(inputs["input_ids"]) % 2:
                raise ValueError("an odd number of rows")
            return super().compute_loss(model, inputs, *args, **kwargs)

    trainer = trainer_of(tmp_path, "model")
    trainer.__class__ = Pairs
    run = layercard.place(trainer, lora_layers=[2, 3], guard_budget=0.5)
    trainer.train()
    assert "fails on a single example (ValueError: an odd number of rows)" in run.report.quality["reason"]
