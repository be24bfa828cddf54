"""Measured unit costs: of the right order on real models, which are left as they were."""

import pytest
import torch

from layercard.anatomy.layers import find_layers
from layercard.cost.unit_costs import measure_unit_costs
from tiny import ENCODERS, FAMILIES, collate, tiny_examples, tiny_model

TARGETS = {
    "gpt2": ["c_attn"],
    "phi3": ["qkv_proj"],
    "bert": ["query"],
    "deberta": ["query_proj"],
    "modernbert": ["Wqkv"],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_measured_and_is_left_as_it_was(family):
    model = tiny_model(family, num_layers=2)
    batch = collate(tiny_examples(4, encoder=family in ENCODERS))
    before = [(name, p.requires_grad, p.grad, p.clone()) for name, p in model.named_parameters()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    kept = model.config.to_dict().get("use_cache")
    units = measure_unit_costs(
        model, find_layers(model), batch, target_modules=TARGETS.get(family, ["q_proj"]), rounds=2
    )
    assert units.layer_forward == 1.0
    for cost in (units.layer_backward, units.head_forward, units.head_backward):
        assert cost > 0
    assert min(units.adapter_forward, units.adapter_backward) >= 0
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert model.config.to_dict().get("use_cache") == kept
    for (name, trainable, gradient, value), (same, now) in zip(before, model.named_parameters(), strict=True):
        assert (name, trainable, gradient) == (same, now.requires_grad, now.grad)
        assert torch.equal(value, now)
