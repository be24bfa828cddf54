"""Optimizers made anew are what the trainer would have made."""

import pytest
import torch
from transformers import TrainerCallback

from layercard.errors import HostError
from layercard.hosts.optimizers import owned, renew_optimizer, trial_optimizer, trial_scaler
from trainers import make_trainer


def _groups(optimizer):
    return [(group["weight_decay"], group["lr"], [id(p) for p in group["params"]]) for group in optimizer.param_groups]


def test_one_for_a_trial_is_the_trainers_own_kind_and_leaves_it_none(tmp_path):
    trainer = make_trainer(tmp_path, optim="adafactor", weight_decay=0.1, learning_rate=3e-4)
    made = trial_optimizer(trainer)
    assert trainer.optimizer is None
    assert type(made).__name__ == "Adafactor"
    assert _groups(made) == _groups(trainer.create_optimizer())
    assert _groups(trial_optimizer(trainer)) == _groups(made)
    assert trainer.optimizer is not made


def test_a_step_sees_the_optimizer_that_owns_it(tmp_path):
    trainer = make_trainer(tmp_path)
    made, scaler = trial_optimizer(trainer), trial_scaler(trainer)
    with owned(trainer, made, scaler):
        assert trainer.optimizer is made
        assert trainer.accelerator.scaler is None
    assert trainer.optimizer is None
    assert scaler.get_scale() == 1.0


class Renew(TrainerCallback):
    def __init__(self, trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        renew_optimizer(self.trainer, state.max_steps)


def test_a_renewed_one_holds_what_trains_now_and_the_scheduler_follows(tmp_path):
    plain, renewed = (make_trainer(tmp_path / name, warmup_steps=2) for name in ("plain", "renewed"))
    renewed.add_callback(Renew(renewed))
    for trainer in (plain, renewed):
        torch.manual_seed(1)
        trainer.train()
    rates = [[entry["learning_rate"] for entry in t.state.log_history if "loss" in entry] for t in (plain, renewed)]
    assert rates[0] == rates[1]
    values = [[p.detach() for p in trainer.model.parameters() if p.requires_grad] for trainer in (plain, renewed)]
    assert all(torch.equal(a, b) for a, b in zip(*values, strict=True))
    assert renewed.accelerator._optimizers == [renewed.optimizer] == [renewed.callback_handler.optimizer]


def test_a_scheduler_of_the_users_cannot_follow_and_says_so(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.create_optimizer()
    trainer.lr_scheduler = torch.optim.lr_scheduler.ConstantLR(trainer.optimizer)
    with pytest.raises(HostError, match=r"was given a scheduler.*on_quality_loss: stop"):
        renew_optimizer(trainer, 4)
