"""Unit costs: measured ones of the right order on real models, which are left as they were; estimated ones as measured."""

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from layercard.anatomy.layers import find_layers
from layercard.cost import unit_costs
from layercard.cost.predict import UnitCosts, predict_step
from layercard.cost.unit_costs import estimate_unit_costs, measure_unit_costs
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


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, 2), (1e6, 4)])
def test_rounds_go_on_for_so_many_seconds_and_no_further_than_the_most(monkeypatch, seconds, rounds):
    monkeypatch.setattr(unit_costs, "MOST_ROUNDS", 4)
    model, calls = tiny_model("llama", num_layers=2), []
    model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    batch = collate(tiny_examples(4))
    measure_unit_costs(model, find_layers(model), batch, target_modules=["q_proj"], rounds=2, seconds=seconds)
    assert len(calls) == 1 + 1 + rounds  # what the layers are called with, a warm-up, the rounds


MEASURED = Path(__file__).parents[2] / "benchmarks/results/unit_costs.json"


def estimated(width: int) -> UnitCosts:
    config = LlamaConfig(hidden_size=width, intermediate_size=3 * width, num_hidden_layers=2, num_attention_heads=4)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    return estimate_unit_costs(model, find_layers(model))


@pytest.mark.parametrize("width", [1024, 2048, 4096])
@pytest.mark.parametrize("part", ["adapter_forward", "adapter_backward"])
def test_adapters_are_estimated_by_the_width_as_they_were_measured(width, part):
    line = json.loads(MEASURED.read_text())["results"]["fits"][part]
    fitted = line["at infinite width"] + line["times 1 / width"] / width
    assert getattr(estimated(width), part) == pytest.approx(fitted, abs=0.01)


def test_narrow_layers_keep_the_cost_that_was_measured_in_small_models():
    narrow, default = estimated(64), UnitCosts()
    assert (narrow.adapter_forward, narrow.adapter_backward) == (default.adapter_forward, default.adapter_backward)


def test_evenly_spaced_layers_gain_less_in_wider_models_than_the_top_ones():
    def speedup(width, layers):
        return predict_step(32, layers, checkpointing=True, units=estimated(width)).speedup

    spaced, top = range(0, 32, 3), range(21, 32)
    assert speedup(4096, spaced) < speedup(576, spaced)
    assert speedup(4096, top) / speedup(4096, spaced) > speedup(576, top) / speedup(576, spaced)
