"""The keys for chosen layers, against adapters that Axolotl's own loader builds: with those keys, and on every layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf

from layercard.anatomy.adapters import adapter_sites
from layercard.anatomy.layers import find_layers
from layercard.errors import LayersNotFoundError, PlacementError
from layercard_axolotl import compat
from layercard_axolotl.adapter_keys import KERNELS_OFF, Selection
from tiny import GQA, tiny_model

ATTENTION = r".*\.(q|k|v|o)_proj"


def vision() -> Any:
    """A language model of four layers behind a vision tower of two."""
    vision_config = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8,
        "patch_size": 4,
    }  # fmt: skip
    config = hf.LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **vision_config},
        text_config={"model_type": "llama", **GQA}, image_token_index=5,
    )  # fmt: skip
    return hf.LlavaForConditionalGeneration(config)


def experts() -> Any:
    return hf.MixtralForCausalLM(hf.MixtralConfig(**GQA, num_local_experts=2, num_experts_per_tok=1))


MODELS = {
    "llama": lambda: tiny_model("llama"),
    "gpt2": lambda: tiny_model("gpt2"),
    "vision": vision,
    "experts": experts,
}
LANGUAGE = r"model\.language_model\.layers\.[\d]+\.(mlp|self_attn)\.(up|down|q|v)_proj"
ASKED: dict[str, list[dict[str, Any]]] = {
    "llama": [
        {"lora_target_linear": True},
        {"lora_target_modules": "all-linear"},
        {"lora_target_modules": ["q_proj", "down_proj"]},
        {"lora_target_modules": ["q_proj", "lm_head"]},
        {"lora_target_modules": ATTENTION},
        {"lora_target_modules": r"model.layers.[\d]+.(self_attn|mlp).(q|v|up)_proj"},
        {"lora_target_modules": r".*layers\.(1|3)\.self_attn\.q_proj|.*up_proj"},
        {"lora_target_modules": r".*(q_proj|embed_tokens)"},
        {"lora_target_linear": True, "lora_exclude_modules": ["v_proj"]},
    ],
    "gpt2": [{"lora_target_modules": ["c_attn"]}, {"lora_target_modules": r"transformer\.h\.\d+\.mlp\.c_.*"}],
    "vision": [{"lora_target_modules": LANGUAGE}, {"lora_target_modules": r"model\.language_model\..*q_proj"}],
    "experts": [
        {"lora_target_modules": ["q_proj"], "lora_target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
        {"lora_target_modules": ATTENTION, "lora_target_parameters": ["experts.down_proj"]},
    ],
}  # fmt: skip
PAIRS = [(family, asked) for family, choices in ASKED.items() for asked in choices]


def cfg_of(asked: dict[str, Any]) -> Any:
    return compat.mapping({"adapter": "lora", "lora_r": 2, "lora_alpha": 4, "lora_dropout": 0.0, **asked})


def built(family: str, cfg: Any) -> set[str]:
    """Names of the modules and parameters that Axolotl adapts under `cfg`."""
    from axolotl.loaders.adapter import load_adapter

    model, _ = load_adapter(MODELS[family](), cfg, "lora")
    return {name for site in adapter_sites(model) for name in (site.parameters or (site.name,))}


@pytest.mark.parametrize(("family", "asked"), PAIRS, ids=[f"{f}-{list(a.values())}" for f, a in PAIRS])
def test_axolotl_builds_what_all_layers_held_there(family, asked):
    everywhere = built(family, cfg_of(asked))
    with torch.device("meta"):
        model = MODELS[family]()
    selection = Selection(cfg_of(asked), model)
    assert selection.modules | selection.parameters == everywhere
    stack = find_layers(model, path=selection.stack_path())
    adapted = selection.layers_of(stack)
    for layers in (adapted, adapted[:1], adapted[-1:], adapted[::2]):
        keys = selection.keys_on(stack, layers)
        wanted = {name for name in everywhere if stack.layer_of(name) in {None, *layers}}
        assert built(family, cfg_of(asked | keys)) == wanted


def test_short_keys_stay_where_they_are_exact():
    model = tiny_model("llama")
    keys = Selection(cfg_of({"lora_target_linear": True}), model).keys_on(find_layers(model), [1, 3])
    assert keys == {"peft_layers_to_transform": [1, 3], "peft_layers_pattern": ["layers"]}


@pytest.mark.parametrize("targets", [r"model\.layers\.\d+\.w_proj", ["w_proj"], "lm_head"])
def test_targets_that_lie_in_no_layer_are_refused_with_what_layers_hold(targets):
    model = tiny_model("llama")
    with pytest.raises(PlacementError, match=r"`lora_target_modules` .* selects no module .*`down_proj`"):
        Selection(cfg_of({"lora_target_modules": targets}), model).layers_of(find_layers(model))


def test_an_expression_for_the_language_layers_chooses_their_stack():
    model = vision()
    with pytest.raises(LayersNotFoundError, match="2 stacks"):
        find_layers(model)
    assert Selection(cfg_of({"lora_target_modules": LANGUAGE}), model).stack_path() == "model.language_model.layers"
    assert Selection(cfg_of({"lora_target_modules": ATTENTION}), model).stack_path() is None


def test_the_advice_names_every_kernel():
    assert all(f"`{key}: false`" in KERNELS_OFF for key in compat.FUSED_KERNELS)
