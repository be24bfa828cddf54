"""LoRA+ and other optimizers of one's own: by `create_optimizer` and `optimizer_cls_and_kwargs`; LoRA-FA trains B alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer
from transformers import Trainer

import layercard
from adapted import take_values
from guarded import WRONG, guarded_trainer
from layercard.errors import HostError
from trainers import make_trainer, train, trained

GUARDED = {"guard_budget": 0.5, "measure_budget": 0.5}
RATE, RATIO = 1e-3, 8.0


class LoraPlus(Trainer):
    def create_optimizer(self, model: Any = None) -> Any:
        if self.optimizer is None:
            self.optimizer = create_loraplus_optimizer(
                self.model, torch.optim.AdamW, lr=RATE, loraplus_lr_ratio=RATIO, weight_decay=0.1
            )
        return self.optimizer


class LoraFA(Trainer):
    def create_optimizer(self, model: Any = None) -> Any:
        if self.optimizer is None:
            self.optimizer = create_lorafa_optimizer(self.model, r=4, lora_alpha=8, lr=RATE)
        return self.optimizer


class WithKwargs(Trainer):
    def __init__(self, **how: Any) -> None:
        super().__init__(optimizer_cls_and_kwargs=(torch.optim.RMSprop, {"lr": RATE, "alpha": 0.7}), **how)


def names(trainer: Any, group: dict[str, Any]) -> set[str]:
    by_id = {id(p): name for name, p in trainer.model.named_parameters()}
    return {by_id[id(p)] for p in group["params"]}


def in_groups(trainer: Any) -> list[str]:
    groups = trainer.optimizer.param_groups
    return sorted(name for group in groups for name in names(trainer, group))


@pytest.mark.parametrize("reaction", ["warn", "widen", "all_layers"])
def test_lora_plus_by_create_optimizer_keeps_its_groups_and_rates(tmp_path: Path, reaction: str) -> None:
    trainer = guarded_trainer(tmp_path, kind=LoraPlus)
    run = layercard.place(trainer, lora_layers=list(WRONG), on_quality_loss=reaction, **GUARDED)
    trainer.train()
    assert run.report.quality["reaction"] == {"warn": "warned", "widen": "widened"}.get(reaction, reaction)
    assert (len(run.layers) > len(WRONG)) is (reaction != "warn")
    assert in_groups(trainer) == sorted(trained(trainer.model))
    for group in trainer.optimizer.param_groups:
        of_b = {".lora_B." in name for name in names(trainer, group)}
        assert of_b in ({True}, {False}, set())
        if of_b:
            assert group["initial_lr"] == pytest.approx(RATE * (RATIO if of_b == {True} else 1))


def test_optimizer_cls_and_kwargs_hold_after_widening(tmp_path: Path) -> None:
    trainer = guarded_trainer(tmp_path, kind=WithKwargs)
    run = layercard.place(trainer, lora_layers=list(WRONG), on_quality_loss="all_layers", **GUARDED)
    trainer.train()
    assert run.placement.is_all
    assert isinstance(trainer.optimizer.optimizer, torch.optim.RMSprop)
    assert in_groups(trainer) == sorted(trained(trainer.model))
    assert {group["alpha"] for group in trainer.optimizer.param_groups} == {0.7}


def test_optimizers_are_refused_with_the_ways_that_work(tmp_path: Path) -> None:
    made = make_trainer(tmp_path)
    own = create_loraplus_optimizer(made.model, torch.optim.AdamW, lr=RATE, loraplus_lr_ratio=RATIO)
    trainer = Trainer(model=made.model, args=made.args, train_dataset=made.train_dataset, optimizers=(own, None))
    ways = r"`optimizers=`.*`optimizer_cls_and_kwargs=.*`create_optimizer`.*LoRA\+.*create_loraplus_optimizer"
    with pytest.raises(HostError, match=ways):
        layercard.place(trainer, lora_layers=[2, 3])


def test_groups_made_before_placing_are_refused_in_every_form(tmp_path: Path) -> None:
    """The trainer would use them once and take them out of the mapping; the next optimizer would have others."""
    made = make_trainer(tmp_path)
    bound = {"params": [{"params": [p for p in made.model.parameters() if p.requires_grad], "lr": RATE}]}
    trainer = Trainer(
        model=made.model,
        args=made.args,
        train_dataset=made.train_dataset,
        optimizer_cls_and_kwargs=(torch.optim.AdamW, bound),
    )
    with pytest.raises(HostError, match=r"`optimizer_cls_and_kwargs` holds `params`.*`create_optimizer`"):
        layercard.place(trainer, lora_layers=[2, 3])
    assert "params" in bound


def test_a_scheduler_of_ones_own_is_refused_in_place_where_layers_may_change(tmp_path: Path) -> None:
    made = make_trainer(tmp_path)
    scheduler = torch.optim.lr_scheduler.ConstantLR(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0))
    for reaction in ("widen", "all_layers"):
        trainer = Trainer(
            model=made.model, args=made.args, train_dataset=made.train_dataset, optimizers=(None, scheduler)
        )
        with pytest.raises(HostError, match=f"scheduler of its own, and `on_quality_loss` is '{reaction}'"):
            layercard.place(trainer, lora_layers=[2, 3], on_quality_loss=reaction)


def freeze_a(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            parameter.requires_grad_(False)


@pytest.mark.parametrize("by_hand", [True, False])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_lora_fa_trains_what_it_trains_on_layers_written_by_hand(tmp_path: Path, by_hand: bool) -> None:
    placed = make_trainer(tmp_path / "placed", kind=Trainer if by_hand else LoraFA)
    alone = make_trainer(tmp_path / "alone", kind=Trainer if by_hand else LoraFA, layers=[2, 3])
    take_values(alone.model, placed.model)
    if by_hand:
        freeze_a(placed.model), freeze_a(alone.model)
    run = layercard.place(placed, lora_layers=[2, 3], guard=False, measure=False)
    train(placed), train(alone)
    ours, theirs = dict(placed.model.named_parameters()), dict(alone.model.named_parameters())
    assert trained(placed.model).keys() == trained(alone.model).keys()
    assert all(".lora_B." in name for name in trained(placed.model))
    for name in theirs:
        assert torch.equal(ours[name], theirs[name]), name
    assert run.report.backward_layers == (2, 3)


@pytest.mark.parametrize("by_hand", [True, False])
def test_all_layer_lora_fa_is_what_lora_fa_is_compared_with(tmp_path: Path, by_hand: bool) -> None:
    """A is frozen in the layers that were shed too, in the trial, in its counts, and after going back to all layers."""
    trainer = guarded_trainer(tmp_path, kind=Trainer if by_hand else LoraFA)
    if by_hand:
        freeze_a(trainer.model)
    run = layercard.place(trainer, lora_layers=list(WRONG), on_quality_loss="all_layers", **GUARDED)
    trainer.train()
    assert run.report.quality["reaction"] == "all_layers" and run.placement.is_all
    assert all(".lora_B." in name for name in trained(trainer.model))
    assert {name for name, p in trainer.model.named_parameters() if ".lora_B." in name} == set(trained(trainer.model))


@pytest.mark.parametrize("by_hand", [True, False])
def test_the_baseline_of_lora_fa_counts_b_alone(tmp_path: Path, by_hand: bool) -> None:
    trainer = make_trainer(tmp_path, kind=Trainer if by_hand else LoraFA)
    if by_hand:
        freeze_a(trainer.model)
    all_b = sum(p.numel() for name, p in trainer.model.named_parameters() if ".lora_B." in name)
    run = layercard.place(trainer, lora_layers=[2, 3], guard=False)
    trainer.train()
    assert run.report.baseline.trainable_parameters == all_b
    assert run.report.placed.trainable_parameters == all_b // 2
