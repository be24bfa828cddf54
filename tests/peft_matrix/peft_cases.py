"""Ways to adapt a model with PEFT that placement works with: the configuration, and what is done to the model after."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bases
import rows
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from adapted import lora_config
from tiny import tiny_examples, tiny_model

LAYERS = (2, 3)
BY_HAND = {"layers_to_transform": list(LAYERS)}
NO_DROPOUT = {
    "opt": {"dropout": 0.0},
    "gpt2": {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
}
"""The base models' own, by which autograd through a model in train mode would be another's."""


def as_made(model: PeftModel) -> None:
    """Leave the model as PEFT made it."""


def freeze_a(model: PeftModel) -> None:
    """What PEFT's optimizer for LoRA-FA does."""
    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            parameter.requires_grad_(False)


def add_frozen_copy(model: PeftModel) -> None:
    """A fresh adapter beside the one that trains, as TRL's DPO makes for its reference."""
    model.add_adapter("reference", copy.deepcopy(model.peft_config["default"]))


@dataclass(frozen=True)
class Case:
    """One way: how people write it, and how it is made."""

    written: str
    """What stands in the table beside the name."""
    lora: dict[str, Any] = field(default_factory=dict)
    family: str = "llama"
    base: Callable[[Path], Any] | None = None
    """How the bare model is made, given a folder to load it from; a tiny model of the family where None."""
    prepare: Callable[[PeftModel], None] = as_made
    by_hand: Mapping[str, Any] = field(default_factory=lambda: BY_HAND)
    """What people who place by hand write besides."""
    packages: tuple[str, ...] = ()
    """What it needs that is installed for it alone."""
    scored: bool = True
    """Whether the probe reads anything of it; otherwise it is placed by depth."""

    def bare(self, folder: Path) -> Any:
        """Return the bare model, the same every time."""
        return self.base(folder) if self.base else tiny_model(self.family, **NO_DROPOUT.get(self.family, {}))

    def config(self, **changes: Any) -> LoraConfig:
        """Return a fresh configuration."""
        return lora_config(self.family, **copy.deepcopy(self.lora | changes))

    def adapted(self, folder: Path, **changes: Any) -> PeftModel:
        """Return the model with fresh adapters."""
        torch.manual_seed(7)
        model = get_peft_model(self.bare(folder), self.config(**changes))
        self.prepare(model)
        return model

    @property
    def kind(self) -> rows.Kind:
        """The rows that it is tried with."""
        return rows.CLASSES if self.family == "bert" else rows.TEXT


TOKENS = sorted(tiny_examples(1)[0]["input_ids"][2:4])
"""Tokens of a training example: only so do they get a gradient from below the layers."""
TORCHAO = ("torchao==0.18.0",)
GPTQ = ("gptqmodel==7.7.0",)
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
EXPERTS_BY_HAND = [f"layers.{layer}.{name}" for layer in LAYERS for name in EXPERTS]

CASES: dict[str, Case] = {
    "LoRA": Case("`LoraConfig()`"),
    "gaussian": Case('`init_lora_weights="gaussian"`', {"init_lora_weights": "gaussian"}),
    "rsLoRA": Case("`use_rslora=True`", {"use_rslora": True}),
    "DoRA": Case("`use_dora=True`", {"use_dora": True}),
    "LoRA-FA": Case("every `lora_A` frozen, as `create_lorafa_optimizer` does", prepare=freeze_a),
    "dropout": Case("`lora_dropout=0.1`", {"lora_dropout": 0.1}),
    "lora_bias": Case("`lora_bias=True`, OPT", {"lora_bias": True}, family="opt"),
    "bias of adapted modules": Case('`bias="lora_only"`, OPT', {"bias": "lora_only"}, family="opt"),
    "every bias": Case('`bias="all"`, OPT', {"bias": "all"}, family="opt"),
    "rank_pattern": Case(
        "ranks by layer and by module",
        {"rank_pattern": {r"layers\.2\.self_attn\.q_proj": 2, r"layers\.0\..*": 3, "v_proj": 5}},
        by_hand=BY_HAND | {"rank_pattern": {r"layers\.2\.self_attn\.q_proj": 2, "v_proj": 5}},
    ),
    "alpha_pattern": Case(
        "alphas by layer and by module", {"alpha_pattern": {r"layers\.3\.self_attn\.v_proj": 2, "down_proj": 32}}
    ),
    "head": Case('`target_modules=[…, "lm_head"]`', {"target_modules": ["q_proj", "lm_head"]}),
    "embeddings": Case(
        '`target_modules=[…, "embed_tokens"]`',
        {"target_modules": ["q_proj", "embed_tokens"]},
        by_hand=BY_HAND | {"target_modules": ["q_proj", "model.embed_tokens"]},
    ),
    "regular expression": Case(
        "`target_modules` of a pattern",
        {"target_modules": r".*\.(q_proj|down_proj)"},
        by_hand={"target_modules": r".*layers\.[23]\..*(q_proj|down_proj)"},
    ),
    "exclude_modules": Case(
        "`all-linear` without some",
        {"target_modules": "all-linear", "exclude_modules": ["up_proj"]},
        by_hand={"target_modules": r".*layers\.[23]\..*_proj"},
    ),
    "Conv1D": Case("`fan_in_fan_out=True`, GPT-2", family="gpt2"),
    "some layers": Case("`layers_to_transform` of the user's", {"layers_to_transform": [0, 2, 3]}),
    "modules_to_save above": Case('`modules_to_save=["lm_head"]`', {"modules_to_save": ["lm_head"]}),
    "modules_to_save in layers": Case(
        '`modules_to_save=["input_layernorm"]`', {"modules_to_save": ["input_layernorm"]}
    ),
    "classifier": Case('`task_type="SEQ_CLS"`: the head is in `modules_to_save`, BERT', family="bert"),
    "trainable tokens": Case("`trainable_token_indices=[…]`", {"trainable_token_indices": TOKENS}),
    "tied trainable tokens": Case(
        "the same with tied embeddings, GPT-2", {"trainable_token_indices": TOKENS}, family="gpt2"
    ),
    "tied modules_to_save": Case(
        '`modules_to_save=["embed_tokens"]`, `ensure_weight_tying=True`, OPT',
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        family="opt",
    ),
    "tied embeddings": Case(
        '`target_modules=[…, "embed_tokens"]`, `ensure_weight_tying=True`, OPT',
        {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
        family="opt",
        by_hand=BY_HAND
        | {"target_modules": ["q_proj", "model.decoder.embed_tokens"], "exclude_modules": r".*layers\.[01]\..*"},
    ),
    "target_parameters": Case(
        "experts kept as parameters, Mixtral",
        {"target_modules": [], "target_parameters": EXPERTS},
        base=bases.mixtral,
        by_hand={"target_parameters": EXPERTS_BY_HAND},
        scored=False,
    ),
    "target_parameters and modules": Case(
        "experts and attention, Mixtral",
        {"target_modules": ["q_proj"], "target_parameters": EXPERTS},
        base=bases.mixtral,
        by_hand={"target_parameters": EXPERTS_BY_HAND, **BY_HAND},
    ),
    "frozen copy beside": Case("a second adapter, fresh and frozen, on the same modules", prepare=add_frozen_copy),
    "NF4": Case("bitsandbytes, double quantization", base=bases.nf4),
    "FP4": Case("bitsandbytes", base=bases.fp4),
    "NF4 with DoRA": Case("bitsandbytes and `use_dora=True`", {"use_dora": True}, base=bases.nf4),
    "8-bit": Case("bitsandbytes, LLM.int8()", base=bases.int8),
    "torchao int8": Case("`Int8WeightOnlyConfig()`", base=bases.torchao_int8, packages=TORCHAO),
    "GPTQ": Case('`GPTQConfig(bits=4, backend="torch")`, GPTQModel', base=bases.gptq, packages=GPTQ),
    "torchao int8, activations too": Case(
        "`Int8DynamicActivationInt8WeightConfig()`", base=bases.torchao_dynamic, packages=TORCHAO
    ),
}
