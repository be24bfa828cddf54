"""Fingerprints: the same for one model however it is held, different for another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft import IA3Config, get_peft_model

from adapted import adapted, batch_of, lora_config, train, with_adapters
from layercard.anatomy.layers import find_layers
from layercard.cards.fingerprint import SAMPLED, model_fingerprint, public_id
from layercard.errors import ModelError
from tiny import FAMILIES, tiny_model

LARGE = {"hidden_size": 64, "intermediate_size": 96}  # bitsandbytes packs blocks of 64


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_and_their_training_change_nothing(family: str) -> None:
    bare = model_fingerprint(tiny_model(family))
    model = adapted(family)
    assert model_fingerprint(model) == bare
    train(model, batch_of(family))
    assert model_fingerprint(model) == bare
    assert model_fingerprint(model, stack=find_layers(model)) == bare


def test_modules_to_save_and_adapted_embeddings_change_nothing() -> None:
    bare = model_fingerprint(tiny_model("llama"))
    for more in ({"modules_to_save": ["lm_head", "embed_tokens"]}, {"trainable_token_indices": [3, 4]}):
        model = with_adapters(tiny_model("llama"), lora_config("llama", **more))
        train(model, batch_of("llama"))
        assert model_fingerprint(model) == bare
    targets = ["embed_tokens", "q_proj"]
    assert model_fingerprint(with_adapters(tiny_model("llama"), lora_config("llama", target_modules=targets))) == bare


def test_what_the_card_holds() -> None:
    model = tiny_model("llama")
    found = model_fingerprint(model, model_id="org/tiny", revision="abc", gguf="Q4_K_M")
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert found["num_layers"] == 4
    assert found["architecture"] == "LlamaForCausalLM"
    assert found["sizes"]["num_key_value_heads"] == 2
    assert (found["id"], found["revision"], found["gguf"]) == ("org/tiny", "abc", "Q4_K_M")
    assert (found["dtype"], found["quantization"]) == ("float32", None)


def test_tied_weights_are_counted_once() -> None:
    model = tiny_model("gpt2")
    assert model_fingerprint(model)["parameters"] == model.num_parameters()


def digest(model: Any) -> str:
    found: str = model_fingerprint(model)["fingerprint"]
    return found


def test_precision_head_and_a_padded_vocabulary_keep_the_digest() -> None:
    one = tiny_model("bert", dtype=torch.bfloat16)
    same = tiny_model("bert", dtype=torch.bfloat16).float()
    assert digest(one) == digest(same)
    assert model_fingerprint(one)["dtype"] == "bfloat16"
    assert digest(one) == digest(one.bert)
    grown = tiny_model("llama", vocab_size=40)
    before = digest(grown)
    grown.resize_token_embeddings(48)
    assert SAMPLED < 40 * 32
    assert digest(grown) == before


def test_another_model_has_another_digest() -> None:
    kinds = [
        tiny_model("llama"),
        tiny_model("llama", seed=1),
        tiny_model("llama", num_layers=5),
        tiny_model("qwen2"),
        tiny_model("mistral"),
    ]
    assert len({digest(model) for model in kinds}) == len(kinds)
    for layer in (0, 2, 3):
        changed = tiny_model("llama")
        with torch.no_grad():
            changed.model.layers[layer].mlp.up_proj.weight[0, 0] += 1
        assert digest(changed) != digest(kinds[0])


def test_saved_and_loaded_it_is_the_same_and_its_folder_stays_private(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "mine")
    loaded = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "mine")
    found = model_fingerprint(loaded)
    assert found["fingerprint"] == digest(model)
    assert found["id"] == "mine"


def test_four_bit_is_another_model_and_the_same_each_time(tmp_path: Path) -> None:
    tiny_model("llama", **LARGE).save_pretrained(tmp_path)
    nf4 = hf.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    plain = hf.AutoModelForCausalLM.from_pretrained(tmp_path)
    packed, again = (hf.AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=nf4) for _ in range(2))
    found = model_fingerprint(packed)
    assert found == model_fingerprint(with_adapters(again, lora_config("llama")))
    assert found["fingerprint"] != digest(plain)
    assert found["quantization"] == "bitsandbytes 4-bit nf4"
    assert found["parameters"] == plain.num_parameters()


def test_weights_that_are_elsewhere_are_refused() -> None:
    with pytest.raises(ModelError, match="meta device"):
        model_fingerprint(tiny_model("llama").to("meta"))


def test_other_adapters_are_refused_by_name() -> None:
    config = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    with pytest.raises(ModelError, match="IA3Model"):
        model_fingerprint(get_peft_model(tiny_model("llama"), config))


def test_a_model_that_reads_pixels_is_known_by_its_layers() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}

    def vision(seed: int) -> Any:
        torch.manual_seed(seed)
        return hf.ViTForImageClassification(hf.ViTConfig(**sizes, image_size=16, patch_size=8))

    assert digest(vision(0)) == digest(vision(0)) != digest(vision(1))


def test_a_module_without_a_configuration_is_refused() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(ModelError, match="no transformers configuration"):
        model_fingerprint(model)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B"),
        ("/home/ada/models/mine/", "mine"),
        ("./mine", "mine"),
        ("~/models/mine", "mine"),
        ("C:\\models\\mine", "mine"),
        ("/home/ada/.cache/hub/models--org--name/snapshots/0123", "org/name"),
        ("gpt2", "gpt2"),
    ],
)
def test_ids_hide_folders(name: str, shown: str) -> None:
    assert public_id(name) == shown
