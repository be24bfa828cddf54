"""What a narrowed model saves selects exactly the live modules when plain PEFT loads it on a fresh base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft import AutoPeftModelForCausalLM, PeftModel

from adapted import adapted, adapter_names, batch_of, logits_of, lora_config, take_values, train, with_adapters
from layercard.anatomy.layers import find_layers
from layercard.anatomy.narrow import narrow
from layercard.anatomy.verify import verify_placement
from tiny import FAMILIES, GQA, tiny_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),  # OPT and GPT-2 tie their output layers
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to"),  # GPT-2's lm_head is no Conv1D
    pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`"),  # the same, when merging
    pytest.mark.filterwarnings(
        "ignore:Adapter 'default'.*invalid shape"
    ),  # PEFT takes biases of `lora_bias` for shards
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`"),  # lm_head counts as an embedding
]


def save_and_load(model: PeftModel, base: Any, folder: Path) -> PeftModel:
    """Save the adapter, load it on `base` with plain PEFT, and return that model."""
    model.save_pretrained(folder)
    return PeftModel.from_pretrained(base, folder)


def assert_round_trip(model: PeftModel, base: Any, folder: Path, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Check names, logits and merged logits of a trained, narrowed model against its saved self; return the config."""
    loaded = save_and_load(model, base, folder)
    assert adapter_names(loaded) == adapter_names(model)
    ranks = {name: p.shape for name, p in loaded.named_parameters() if "lora_" in name}
    assert ranks == {name: p.shape for name, p in model.named_parameters() if "lora_" in name}
    assert torch.equal(logits_of(loaded, batch), logits_of(model, batch))
    assert torch.equal(logits_of(loaded.merge_and_unload(), batch), logits_of(model.merge_and_unload(), batch))
    return json.loads((folder / "adapter_config.json").read_text())


CASES: list[tuple[str, int, tuple[int, ...], dict[str, Any]]] = [
    *[(family, 4, (1, 3), {"target_modules": "all-linear"}) for family in FAMILIES],
    ("llama", 2, (1,), {"target_modules": "all-linear"}),
    ("phi3", 2, (0,), {"target_modules": "all-linear"}),
    ("gpt2", 2, (0,), {"target_modules": "all-linear"}),
    ("bert", 2, (1,), {"target_modules": "all-linear"}),
    ("llama", 12, (1, 11), {"target_modules": ["q_proj", "v_proj"]}),  # 1 ends 11
    ("llama", 4, (1, 3), {"target_modules": r".*\.(q_proj|down_proj)"}),
    ("bert", 4, (2,), {"target_modules": r".*attention\.(self\.query|output\.dense)"}),
    ("llama", 4, (1, 3), {"target_modules": ["q_proj", "lm_head"]}),
    ("gpt2", 4, (1, 3), {"target_modules": ["c_attn", "lm_head"]}),
    ("llama", 4, (1, 3), {"target_modules": ["q_proj", "embed_tokens"]}),
    ("llama", 2, (0,), {"target_modules": r".*(q_proj|lm_head)"}),
    ("llama", 4, (1, 3), {"layers_to_transform": [0, 1, 3], "layers_pattern": "layers"}),
    ("llama", 4, (2,), {"target_modules": "all-linear", "exclude_modules": ["up_proj"]}),
    ("opt", 4, (1, 3), {"bias": "lora_only"}),
    ("opt", 4, (1, 3), {"bias": "all"}),
    ("llama", 4, (1, 3), {"modules_to_save": ["lm_head"]}),
    ("llama", 4, (1, 3), {"modules_to_save": ["input_layernorm"]}),
    ("llama", 4, (1, 3), {"trainable_token_indices": [5, 6]}),
    ("gpt2", 4, (1, 3), {"trainable_token_indices": [5, 6]}),  # tied: the output layer shares the tokens
    ("gpt2", 4, (1, 3), {"trainable_token_indices": {"wte": [5, 6], "lm_head": [5, 6]}}),
    ("opt", 4, (1, 3), {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    ("opt", 4, (1, 3), {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}),
    ("llama", 4, (1, 3), {"use_dora": True}),
    ("llama", 4, (1, 3), {"use_rslora": True}),
    ("opt", 4, (1, 3), {"lora_bias": True}),
    (
        "llama",
        4,
        (1, 3),
        {
            "rank_pattern": {r"layers\.0\.self_attn\.q_proj": 2, r"layers\.3\.self_attn\.q_proj": 3, "v_proj": 5},
            "alpha_pattern": {r"layers\.2\.self_attn\.v_proj": 2, "down_proj": 32},
        },
    ),
]


@pytest.mark.parametrize(("family", "num_layers", "layers", "changes"), CASES, ids=str)
def test_the_saved_adapter_selects_exactly_the_live_modules(
    family: str, num_layers: int, layers: tuple[int, ...], changes: dict[str, Any], tmp_path: Path
) -> None:
    model = adapted(family, num_layers=num_layers, **changes)
    stack = find_layers(model)
    live = {name for name in adapter_names(model) if stack.layer_of(name) in {None, *layers}}
    narrow(model, stack, layers)
    verify_placement(model, stack, layers)
    assert set(adapter_names(model)) == live
    batch = batch_of(family)
    train(model, batch, steps=2)
    assert_round_trip(model, tiny_model(family, num_layers=num_layers), tmp_path, batch)


@pytest.mark.parametrize(
    ("family", "written", "saved", "pattern"),
    [
        ("llama", ["q_proj", "v_proj"], {"q_proj", "v_proj"}, "layers"),
        ("llama", r".*\.(q_proj|v_proj)", {"q_proj", "v_proj"}, "layers"),
        ("llama", ["q_proj", "lm_head"], {"q_proj", "lm_head"}, "layers"),
        ("llama", ["q_proj", "embed_tokens"], {"q_proj", "embed_tokens", "model.embed_tokens"}, "layers"),
        ("bert", r".*attention\.output\.dense", {"attention.output.dense"}, "layer"),
        ("gpt2", ["c_attn"], {"c_attn"}, "h"),
    ],
)
def test_the_saved_configuration_reads_as_a_person_would_write_it(
    family: str, written: Any, saved: set[str], pattern: str, tmp_path: Path
) -> None:
    model = adapted(family, target_modules=written)
    narrow(model, find_layers(model), (1, 3))
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert set(config["target_modules"]) == saved
    assert (config["layers_to_transform"], config["layers_pattern"]) == ([1, 3], pattern)


def test_full_names_are_written_where_layers_alone_cannot_tell(tmp_path: Path) -> None:
    targets = ["layers.1.self_attn.q_proj", "layers.1.self_attn.v_proj", "layers.2.self_attn.q_proj"]
    model = adapted("llama", target_modules=rf"model\.({'|'.join(targets)}|layers.0.mlp.up_proj)")
    narrow(model, find_layers(model), (1, 2))
    batch = batch_of("llama")
    train(model, batch, steps=2)
    saved = assert_round_trip(model, tiny_model("llama"), tmp_path, batch)
    assert set(saved["target_modules"]) == {f"model.{target}" for target in targets}
    assert saved["layers_to_transform"] is None
    assert saved["layers_pattern"] is None


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
@pytest.mark.parametrize("targets", ["all-linear", "experts", "parameters"])
@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match")  # PEFT's own, for experts
def test_experts_as_parameters_are_unwrapped_to_the_bottom(family: str, targets: str, tmp_path: Path) -> None:
    if family == "mixtral":
        config: Any = hf.MixtralConfig(**GQA, num_local_experts=4, num_experts_per_tok=2)
        experts = ["q_proj", "w1", "w2", "w3"]
    else:
        moe = {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        config = hf.Qwen3MoeConfig(**GQA, **moe)
        experts = ["q_proj", "gate_proj", "up_proj", "down_proj"]
    names = {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"], "target_modules": []}
    changes: dict[str, dict[str, Any]] = {
        "all-linear": {"target_modules": "all-linear"},
        "experts": {"target_modules": experts},
        "parameters": names,
    }

    def base() -> Any:
        torch.manual_seed(0)
        return hf.AutoModelForCausalLM.from_config(config)

    model = with_adapters(base(), lora_config("llama", **changes[targets]))
    stack = find_layers(model)
    live = {name for name in adapter_names(model) if stack.layer_of(name) in {1, 3}}
    assert any(".experts.base_layer.lora_A" in name for name in live)
    bare = {name for name, _ in base().model.layers[0].named_parameters()}
    narrow(model, stack, (1, 3))
    verify_placement(model, stack, (1, 3))
    assert set(adapter_names(model)) == live
    assert {name for name, _ in stack.layers[0].named_parameters()} == bare
    batch = batch_of("llama")
    train(model, batch, steps=2)
    assert_round_trip(model, base(), tmp_path, batch)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.filterwarnings("ignore:MatMul8bitLt")  # says that it casts float32 to float16
def test_quantized_models_narrow_train_save_and_reload_as_by_hand(bits: int, tmp_path: Path) -> None:
    wide = tiny_model("llama", hidden_size=64, intermediate_size=128, head_dim=16)  # a whole NF4 block a row
    wide.save_pretrained(tmp_path / "base")
    nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    quantization = hf.BitsAndBytesConfig(**(nf4 if bits == 4 else {"load_in_8bit": True}))

    def base() -> Any:
        return hf.AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=quantization)

    def training_logits(model: PeftModel) -> torch.Tensor:
        """In train mode, since bitsandbytes packs 4-bit weights for inference in eval mode and loses gradients then."""
        model.train()
        with torch.no_grad():
            return model(**batch).logits

    batch = batch_of("llama")
    model = with_adapters(base(), lora_config("llama"))
    by_hand = take_values(with_adapters(base(), lora_config("llama", layers_to_transform=[1, 3])), model)
    before = training_logits(model)
    stack = find_layers(model)
    narrowing = narrow(model, stack, (1, 3))
    verify_placement(model, stack, (1, 3))
    assert torch.equal(training_logits(model), before)

    train(model, batch, steps=2)
    train(by_hand, batch, steps=2)
    assert not torch.equal(training_logits(model), before)
    assert torch.equal(training_logits(model), training_logits(by_hand))
    with narrowing.all_layers():
        assert {stack.layer_of(name) for name in adapter_names(model)} == {0, 1, 2, 3}
        assert torch.equal(training_logits(model), training_logits(by_hand))
    loaded = save_and_load(model, base(), tmp_path / "adapter")
    assert adapter_names(loaded) == adapter_names(model)
    assert torch.equal(training_logits(loaded), training_logits(model))


def test_auto_classes_load_the_saved_adapter(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "base")
    base = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = with_adapters(base, lora_config("llama", target_modules="all-linear"))
    narrow(model, find_layers(model), (2,))
    train(model, batch_of("llama"), steps=2)
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits_of(loaded, batch_of("llama")), logits_of(model, batch_of("llama")))
