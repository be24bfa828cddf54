"""Tiny models with real LoRA adapters, a few training steps, and a fingerprint of all that training could see."""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from tiny import CAUSAL, collate, tiny_examples, tiny_model

TARGETS = {
    "gpt2": ["c_attn", "c_fc"],
    "opt": ["q_proj", "fc1", "fc2"],
    "phi3": ["qkv_proj", "down_proj"],
    "bert": ["query", "intermediate.dense"],
    "deberta": ["query_proj", "key_proj", "intermediate.dense"],
    "modernbert": ["Wqkv", "Wi"],
}
LIKE_LLAMA = ["q_proj", "v_proj", "down_proj"]


def lora_config(family: str, **changes: Any) -> LoraConfig:
    values: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 8,
        "task_type": "CAUSAL_LM" if family in CAUSAL or family not in TARGETS else "SEQ_CLS",
        "target_modules": TARGETS.get(family, LIKE_LLAMA),
        "fan_in_fan_out": family == "gpt2",
    }
    return LoraConfig(**(values | changes))


def adapted(family: str, *, num_layers: int = 4, dtype: torch.dtype = torch.float32, **lora: Any) -> PeftModel:
    """Return a tiny model with fresh adapters; the same arguments give the same weights."""
    return with_adapters(tiny_model(family, num_layers=num_layers, dtype=dtype), lora_config(family, **lora))


def with_adapters(model: Any, config: LoraConfig) -> PeftModel:
    torch.manual_seed(7)
    return get_peft_model(model, copy.deepcopy(config))


def take_values(model: PeftModel, source: PeftModel) -> PeftModel:
    """Give the trainable parameters the values that those of the same name have in `source`."""
    values = dict(source.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(values[name].data)
    return model


def batch_of(family: str) -> dict[str, torch.Tensor]:
    return collate(tiny_examples(4, encoder=family in {"bert", "deberta", "modernbert"}))


def train(model: Any, batch: dict[str, torch.Tensor], steps: int = 3) -> None:
    """Take AdamW steps in train mode, dropout included, from a fixed random state."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    torch.manual_seed(3)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()


@torch.no_grad()
def logits_of(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the logits in eval mode."""
    training = model.training
    model.eval()
    logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    model.train(training)
    return logits


def adapter_names(model: Any) -> list[str]:
    return [name for name, _ in model.named_parameters() if "lora_" in name]


def trainable(model: Any) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def fingerprint(model: PeftModel) -> dict[str, Any]:
    """Everything about the model that narrowing may touch, by value, and the identity of each of its modules."""
    return {
        "modules": [(name, id(module), module.training) for name, module in model.named_modules()],
        "parameters": [(name, id(p), p.requires_grad) for name, p in model.named_parameters()],
        "values": {name: value.clone() for name, value in model.state_dict().items() if torch.is_tensor(value)},
        "config": {name: config.to_dict() for name, config in model.peft_config.items()},
        "targets": (
            list(getattr(model.base_model, "targeted_module_names", [])),
            list(getattr(model.base_model, "targeted_parameter_names", [])),
        ),
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    for part in ("modules", "parameters", "config", "targets"):
        assert before[part] == after[part], part
    assert before["values"].keys() == after["values"].keys()
    for name, value in before["values"].items():
        assert torch.equal(value, after["values"][name]), name
