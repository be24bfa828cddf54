"""Bases whose linear modules are a quantizer's own: probed through their own forward, or refused by name."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kinds import oracle
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from transformers import Trainer

import layercard
from layercard.anatomy.layers import find_layers
from layercard.anatomy.targets import find_targets
from layercard.errors import ModelError, ProbeError
from tiny import collate, tiny_examples, tiny_model
from trainers import Rows, StopAfter, arguments


class Packed(nn.Module):
    """A linear module as quantizers make them: int8 weights and scales in buffers, no parameter, no `nn.Linear`."""

    passes_gradients = True

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("qweight", (linear.weight.detach() / scale).round().to(torch.int8))

    @property
    def weight(self) -> Tensor:
        return self.qweight

    def forward(self, x: Tensor) -> Tensor:
        weight = self.qweight.to(x.dtype) * self.scale
        return (x if self.passes_gradients else x.detach()) @ weight.T


class Opaque(Packed):
    passes_gradients = False


class PackedLora(LoraLinear):
    """What PEFT's own classes for quantizers do: add BAx to whatever the base module returns."""

    def __init__(self, base_layer: Packed, adapter_name: str, config: LoraConfig, **kwargs: Any) -> None:
        super().__init__(base_layer, adapter_name, config, **kwargs)


def quantized(kind: type[Packed] = Packed) -> Any:
    """Return a tiny Llama with every linear module of its layers packed, and LoRA on q and v."""
    model = tiny_model("llama")
    for layer in model.model.layers:
        for name, module in list(layer.named_modules()):
            if isinstance(module, nn.Linear):
                parent, _, child = name.rpartition(".")
                setattr(layer.get_submodule(parent), child, kind(module))
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    config._register_custom_module({kind: PackedLora})
    torch.manual_seed(7)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Unsupported layer type")  # PEFT, of every class that is not its own
        return get_peft_model(model, config)


def trainer_of(folder: Path, model: Any) -> Any:
    trainer = Trainer(model=model, args=arguments(folder), train_dataset=Rows(tiny_examples(20)), data_collator=collate)
    trainer.add_callback(StopAfter(1))
    return trainer


def test_the_adapters_of_a_packed_base_are_the_targets(tmp_path: Path) -> None:
    model = quantized()
    stack = find_layers(model)
    assert {target.name for target in find_targets(model, stack)} == {"self_attn.q_proj", "self_attn.v_proj"}
    singles = [collate([example]) for example in tiny_examples(20)]
    expected = oracle(model, singles, stack.layers)
    run = layercard.place(trainer_of(tmp_path, model), lora_layers="high", probe_examples=20)
    assert run.scores is not None
    np.testing.assert_allclose(run.scores["resnorm"].raw, expected, rtol=2e-5)


@pytest.mark.parametrize("lora_layers", ["auto", "last", [2, 3]])
def test_it_trains(tmp_path: Path, lora_layers: Any) -> None:
    trainer = trainer_of(tmp_path, quantized())
    layercard.place(trainer, lora_layers=lora_layers)
    trainer.train()


def test_a_packed_base_without_adapters_is_read_by_name() -> None:
    model = quantized().unload()
    names = {target.name for target in find_targets(model, find_layers(model), names=["q_proj"])}
    assert names == {"self_attn.q_proj"}


def without_residuals(model: Any) -> Any:
    """Gradients flow beside a module through the residual stream; without it none passes one that detaches."""
    for layer in model.base_model.model.model.layers:
        layer.forward = partial(_in_a_row, layer)
    return model


def _in_a_row(layer: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    found = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **kwargs)[0]
    return layer.mlp(layer.post_attention_layernorm(found))


def test_a_module_that_passes_no_gradient_on_is_named(tmp_path: Path) -> None:
    model = without_residuals(quantized())
    for name in ("q_proj", "k_proj", "v_proj"):
        module = model.base_model.model.model.layers[3].self_attn.get_submodule(name)
        base = module.base_layer if name != "k_proj" else module
        base.__class__ = Opaque
    with pytest.raises(
        ProbeError, match=r"modules of layers 0–2 of 0–3. A module above them \(such as `Opaque`, `Packed`\)"
    ):
        layercard.place(trainer_of(tmp_path, model), lora_layers="high")


def test_a_base_of_such_modules_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match=r"modules of the base \(such as `Opaque`\) must pass gradients on"):
        layercard.place(trainer_of(tmp_path, without_residuals(quantized(Opaque))), lora_layers="high")


def experts(**targets: Any) -> Any:
    import transformers as hf

    from tiny import GQA

    torch.manual_seed(0)
    base = hf.MixtralForCausalLM(hf.MixtralConfig(**GQA, num_local_experts=2))
    return get_peft_model(base, LoraConfig(r=2, task_type="CAUSAL_LM", **targets))


def test_adapters_on_experts_alone_are_refused_by_name_and_placed_by_depth(tmp_path: Path) -> None:
    only = {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj"]}
    with pytest.raises(ModelError, match=r"adapters on `mlp.experts.gate_up_proj` alone.*by depth"):
        layercard.place(trainer_of(tmp_path, experts(**only)), lora_layers="high")
    run = layercard.place(trainer_of(tmp_path, experts(**only)), lora_layers="last", num_layers=1)
    assert run.layers == (3,)


def test_experts_that_are_not_adapted_are_not_called_left_out(tmp_path: Path) -> None:
    run = layercard.place(trainer_of(tmp_path, experts(target_modules=["q_proj"])), lora_layers="high")
    assert run.statistics is not None
    assert run.statistics.left_out == () and run.statistics.notes == ()


def test_a_matrix_adapted_as_a_parameter_is_read(tmp_path: Path) -> None:
    """PEFT adapts `q_proj.weight` as a parameter by the formula that it has for the module."""
    base = tiny_model("llama")
    torch.manual_seed(7)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=[], target_parameters=["self_attn.q_proj.weight"]))
    stack = find_layers(model)
    expected = oracle(model, [collate([example]) for example in tiny_examples(20)], stack.layers)
    run = layercard.place(trainer_of(tmp_path, model), lora_layers="high", probe_examples=20)
    assert run.scores is not None
    np.testing.assert_allclose(run.scores["resnorm"].raw, expected, rtol=2e-5)
