from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import set_seed

from layercard.study.adapting import adapted, make_trainer, narrowed
from layercard.study.arms import make_arms
from layercard.study.cost import measure_costs
from layercard.study.evaluation import evaluate
from layercard.study.examples import training_rows
from layercard.study.training import train_arm
from studies import BRIEF, subject


def test_a_seed_repeats_and_another_differs(tmp_path: Path) -> None:
    subject_ = subject(tmp_path)
    first, again, other = (train_arm(subject_, (1, 3), seed) for seed in (0, 0, 1))
    assert first["metrics"] == again["metrics"]
    assert first["metrics"] != other["metrics"]


def test_the_base_model_is_not_touched(tmp_path: Path) -> None:
    subject_ = subject(tmp_path)
    before = {name: value.clone() for name, value in subject_.base.state_dict().items()}
    train_arm(subject_, (0, 5), 0)
    after = subject_.base.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_it_reaches_what_hand_written_adapters_on_those_layers_reach(tmp_path: Path) -> None:
    subject_, layers = subject(tmp_path), (2, 4)
    found = train_arm(subject_, layers, 0)
    whole, _ = adapted(subject_.base, "causal", BRIEF, 0, subject_.extensions)
    names = sorted({name.rsplit(".", 1)[-1] for name in whole.base_model.targeted_module_names})
    other = subject(tmp_path)
    by_hand = get_peft_model(
        other.base,
        LoraConfig(r=4, lora_alpha=8, target_modules=names, layers_to_transform=list(layers), task_type="CAUSAL_LM"),
    )
    values = dict(whole.named_parameters())
    for name, parameter in by_hand.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(values[name].data)
    rows = training_rows(subject_.data, subject_.tokenizer, "causal", BRIEF, 0)
    trainer = make_trainer(by_hand, rows, subject_.tokenizer, BRIEF, 0, tmp_path / "out")
    set_seed(0)
    assert trainer.train().training_loss == pytest.approx(found["train_loss"], rel=1e-6)
    judged = evaluate(by_hand, subject_.heldout, subject_.tokenizer, "causal", batch_size=2)
    assert judged["heldout_loss"] == pytest.approx(found["metrics"]["heldout_loss"], rel=1e-6)
    assert sum(p.numel() for p in by_hand.parameters() if p.requires_grad) == found["trainable_parameters"]


def test_all_sets_of_layers_begin_at_the_same_values(tmp_path: Path) -> None:
    subject_ = subject(tmp_path)
    first, stack = adapted(subject_.base, "causal", BRIEF, 0, subject_.extensions)
    second, _ = adapted(subject_.base, "causal", BRIEF, 0, subject_.extensions)
    with narrowed(first, stack, (1,)):
        mine = {name: p for name, p in first.named_parameters() if p.requires_grad}
        theirs = dict(second.named_parameters())
        assert mine
        assert all(torch.equal(p, theirs[name]) for name, p in mine.items())


def test_a_classifier_trains_its_head_with_any_layers(tmp_path: Path) -> None:
    subject_ = subject(tmp_path, family="bert")
    found = train_arm(subject_, (3,), 0)
    assert set(found["metrics"]) == {"heldout_loss", "accuracy"}
    head = sum(p.numel() for p in subject_.base.classifier.parameters())
    assert found["trainable_parameters"] > head


def test_costs_are_relative_to_all_layers_and_fewer_layers_hold_less(tmp_path: Path) -> None:
    subject_ = subject(tmp_path)
    arms = make_arms(torch.arange(6, 0, -1).double().numpy())
    costs = measure_costs(subject_, arms, 0)
    assert set(costs["arms"]) == {arm.name for arm in arms}
    assert costs["arms"]["all_layers"]["step_seconds_ratio"] == 1.0
    assert costs["arms"]["all_layers"]["peak_memory_ratio"] == 1.0
    assert costs["arms"]["last"]["peak_memory_ratio"] < 1.0
    assert "approximation" in costs["memory_method"]


def test_without_layers_a_classifier_trains_its_head_alone(tmp_path: Path) -> None:
    subject_ = subject(tmp_path, family="bert")
    found = train_arm(subject_, (), 0)
    assert found["trainable_parameters"] == sum(p.numel() for p in subject_.base.classifier.parameters())
    head = subject_.base  # the head alone by hand, on a copy of the same start
    names = {name for name, _ in head.named_parameters() if name.startswith("classifier")}
    for name, parameter in head.named_parameters():
        parameter.requires_grad_(name in names)
    rows = training_rows(subject_.data, subject_.tokenizer, "classification", BRIEF, 0)
    trainer = make_trainer(head, rows, subject_.tokenizer, BRIEF, 0, tmp_path / "out")
    set_seed(0)
    trainer.train()
    by_hand = evaluate(head, subject_.heldout, subject_.tokenizer, "classification", batch_size=2)
    assert by_hand["heldout_loss"] == pytest.approx(found["metrics"]["heldout_loss"], rel=1e-3)
