import random

import numpy as np
import pytest
import torch
from torch import nn

from layercard.cost.untouched import clear_gradients, random_state, trainable_parameters, untouched


def _draws():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_random_state_is_put_back_and_a_seed_decides_the_block():
    with random_state():
        expected = _draws()
    drawn = []
    for _ in range(2):
        with random_state(3):
            drawn.append(_draws())
    assert drawn[0] == drawn[1] != expected
    assert _draws() == expected


def test_a_failing_step_leaves_the_model_as_found():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).eval()
    model[0].weight.grad = kept = torch.ones(4, 4)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with random_state():
        expected = _draws()

    def step():
        with untouched(model):
            assert model[0].weight.grad is None
            model.train()(torch.randn(8, 4)).sum().backward()
            model[0].weight.data.add_(1)
            raise ValueError("half-way")

    with pytest.raises(ValueError, match="half-way"):
        step()
    assert model[0].weight.grad is kept and model[0].bias.grad is None and not model[2].training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert _draws() == expected


def test_gradients_are_cleared_and_trainable_numbers_counted():
    model = nn.Linear(4, 2)
    model.bias.requires_grad_(False)
    model(torch.ones(1, 4)).sum().backward()
    clear_gradients(model)
    assert model.weight.grad is None and trainable_parameters(model) == 8
