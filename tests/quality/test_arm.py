"""Arms train as a loop written by hand does, take turns without touching each other, and leave the model as it was."""

from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn

from layercard.quality.arm import Arm, ArmSetup, advance


def _model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


BATCHES = [torch.randn(3, 4, generator=torch.Generator().manual_seed(n)) for n in range(12)]


def _trial(model, optimizer=torch.optim.AdamW, **changes):
    values = {
        "model": model,
        "micro_step": lambda number: model(BATCHES[number]).square().mean().backward(),
        "steps_each": 2,
        "optimizer": lambda: optimizer([p for p in model.parameters() if p.requires_grad], lr=0.1),
        "max_grad_norm": 0.5,
        "scaler": lambda: torch.amp.GradScaler("cpu", enabled=False),
        "owned": lambda optimizer, scaler: nullcontext(),
        "shared": lambda values: None,
        "averaged": lambda parameters: None,
    }
    return ArmSetup(**(values | changes))


def _by_hand(updates, rate=1.0, optimizer=torch.optim.AdamW):
    model = _model()
    steps = optimizer(model.parameters(), lr=0.1 * rate)
    for update in range(updates):
        for micro in range(2):
            model(BATCHES[2 * update + micro]).square().mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        steps.step()
        steps.zero_grad()
    return [p.detach() for p in model.parameters()]


def _values(arm):
    with arm.judged():
        return [p.detach().clone() for p in arm._setup.model.parameters()]


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_arms_in_turn_train_as_each_alone_would(optimizer):
    model = _model()
    trial = _trial(model, optimizer)
    arms = [Arm(trial, nullcontext), Arm(trial, nullcontext, rate=2.0)]
    advance(arms, 3)
    advance(arms, 12)
    for arm, rate in zip(arms, (1.0, 2.0), strict=True):
        for got, wanted in zip(_values(arm), _by_hand(6, rate, optimizer), strict=True):
            assert torch.equal(got, wanted)


def test_the_model_holds_the_very_tensors_it_held():
    model = _model()
    before = [(p.data_ptr(), p.detach().clone()) for p in model.parameters()]
    arm = Arm(_trial(model), nullcontext)
    advance([arm], 5)  # an optimizer step is half done
    assert [p.data_ptr() for p in model.parameters()] == [pointer for pointer, _ in before]
    assert all(torch.equal(p, value) for p, (_, value) in zip(model.parameters(), before, strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_an_arm_trains_what_its_context_makes_trainable_and_nothing_else():
    model = _model()
    model[0].requires_grad_(False)
    arm = Arm(_trial(model), nullcontext)
    advance([arm], 4)
    values = _values(arm)
    assert torch.equal(values[0], model[0].weight)
    assert not torch.equal(values[2], model[2].weight)


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_what_learns_no_more_keeps_its_values_and_the_rest_trains_as_by_hand(optimizer):
    """The first layer learns in two of six optimizer steps; an averaging over processes may not give it a gradient again."""
    model, by_hand, averaged = _model(), _model(), []

    @contextmanager
    def entered():
        learns = arm.taken < 4 if arm else True
        model[0].requires_grad_(learns)
        yield
        model[0].requires_grad_(True)

    def average(parameters):
        averaged.append(len(parameters))
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    arm = None
    arm = Arm(_trial(model, optimizer, averaged=average), entered)
    advance([arm], 12)
    steps = optimizer(by_hand.parameters(), lr=0.1)
    for update in range(6):
        by_hand[0].requires_grad_(update < 2)
        for micro in range(2):
            by_hand(BATCHES[2 * update + micro]).square().mean().backward()
        nn.utils.clip_grad_norm_(by_hand.parameters(), 0.5)
        steps.step()
        steps.zero_grad()
    for got, wanted in zip(_values(arm), by_hand.parameters(), strict=True):
        assert torch.equal(got, wanted)
    assert averaged == [4, 4, 2, 2, 2, 2]
    assert [p.requires_grad for p in model.parameters()] == [True] * 4


def test_a_failure_in_the_middle_leaves_the_model_as_it_was():
    model = _model()
    before = [p.detach().clone() for p in model.parameters()]

    def fails(number):
        model(BATCHES[number]).mean().backward()
        raise KeyError

    with pytest.raises(KeyError):
        advance([Arm(_trial(model, micro_step=fails), nullcontext)], 1)
    assert all(torch.equal(p, value) for p, value in zip(model.parameters(), before, strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_a_scaled_loss_trains_as_an_unscaled_one_and_an_overflow_lowers_the_scale():
    model, current = _model(), []

    @contextmanager
    def owned(optimizer, scaler):
        current[:] = [scaler]
        yield

    def micro_step(number, times=1.0):
        current[0].scale(times * model(BATCHES[number]).square().mean()).backward()

    trial = _trial(model, micro_step=micro_step, owned=owned)
    scaled = Arm(replace(trial, scaler=lambda: torch.amp.GradScaler("cpu", init_scale=2.0**12)), nullcontext)
    large = replace(trial, micro_step=lambda number: micro_step(number, 1e4))
    overflowing = Arm(replace(large, scaler=lambda: torch.amp.GradScaler("cpu", init_scale=2.0**127)), nullcontext)
    advance([scaled, overflowing], 12)
    for got, wanted in zip(_values(scaled), _by_hand(6), strict=True):
        torch.testing.assert_close(got, wanted)
    assert all(value.isfinite().all() for value in _values(overflowing))
    assert overflowing._scaler.get_scale() < 2.0**127


class ScheduleFree(torch.optim.SGD):
    """Holds other values for evaluation than for training, as schedule-free optimizers do."""

    mode = "train"

    def train(self):
        self.mode = "train"

    def eval(self):
        self.mode = "eval"


def test_an_optimizer_with_modes_is_judged_in_its_own_for_evaluation():
    arm = Arm(_trial(_model(), ScheduleFree), nullcontext)
    with arm.judged():
        assert arm.optimizer.mode == "eval"
    assert arm.optimizer.mode == "train"
    with arm.in_force():
        assert arm.optimizer.mode == "train"
