"""The verification notices every way in which a placement may not have taken effect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict

from adapted import adapted, batch_of, logits_of, train, trainable
from layercard.anatomy.adapters import adapter_sites
from layercard.anatomy.layers import LayerStack, find_layers
from layercard.anatomy.narrow import narrow
from layercard.anatomy.verify import check_checkpoint, expected_trainable, verify_placement
from layercard.errors import PlacementError
from tiny import FAMILIES, tiny_model

LAYERS = (1, 3)


def thaw_a_frozen_weight(model: PeftModel, stack: LayerStack) -> None:
    stack.layers[0].self_attn.q_proj.weight.requires_grad_(True)


def freeze_an_adapter(model: PeftModel, stack: LayerStack) -> None:
    stack.layers[1].self_attn.q_proj.lora_A.requires_grad_(False)


def lose_an_adapter(model: PeftModel, stack: LayerStack) -> None:
    site = next(site for site in adapter_sites(model) if stack.layer_of(site.path) == 3)
    setattr(site.parent, site.child, site.base)


def adapt_another_layer(model: PeftModel, stack: LayerStack) -> None:
    stack.layers[0].self_attn.q_proj = stack.layers[1].self_attn.q_proj


def widen_the_configuration(model: PeftModel, stack: LayerStack) -> None:
    model.peft_config["default"].layers_to_transform = [1, 2, 3]


def forget_the_layers(model: PeftModel, stack: LayerStack) -> None:
    model.peft_config["default"].layers_to_transform = None
    model.peft_config["default"].layers_pattern = None


def drop_a_target(model: PeftModel, stack: LayerStack) -> None:
    model.peft_config["default"].target_modules = {"q_proj", "v_proj"}


def freeze_everything(model: PeftModel, stack: LayerStack) -> None:
    model.requires_grad_(False)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (thaw_a_frozen_weight, r"layers\.0\.self_attn\.q_proj\.weight` train and should not"),
        (freeze_an_adapter, r"layers\.1\.self_attn\.q_proj\.lora_A\.default\.weight` should train and do not"),
        (lose_an_adapter, r"layers\.3\.self_attn\.q_proj\.lora_A\.default\.weight`, .* should train and do not"),
        (adapt_another_layer, r"layers\.0\.self_attn\.q_proj\.lora_A\.default\.weight`.* train and should not"),
        (widen_the_configuration, "configuration selects layers 1–3 of 0–3 and the placement is layers 1, 3 of 0–3"),
        (forget_the_layers, "configuration selects layers 0–3 of 0–3"),
        (drop_a_target, r"down_proj\.lora_A\.default\.weight`.* train and should not"),
        (freeze_everything, "and 3 more should train and do not"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_placement_that_did_not_take_effect_is_refused(
    spoil: Callable[[PeftModel, LayerStack], None], message: str
) -> None:
    model = adapted("llama")
    stack = find_layers(model)
    narrow(model, stack, LAYERS)
    verify_placement(model, stack, LAYERS)
    spoil(model, stack)
    with pytest.raises(PlacementError, match=message):
        verify_placement(model, stack, LAYERS)


def test_a_model_that_was_not_narrowed_is_refused() -> None:
    model = adapted("llama")
    with pytest.raises(
        PlacementError, match="configuration selects layers 0–3 of 0–3 and the placement is layers 1, 3"
    ):
        verify_placement(model, find_layers(model), LAYERS)


def test_another_placement_than_the_one_applied_is_refused() -> None:
    model = adapted("llama")
    stack = find_layers(model)
    narrow(model, stack, LAYERS)
    with pytest.raises(
        PlacementError, match="configuration selects layers 1, 3 of 0–3 and the placement is layers 2–3"
    ):
        verify_placement(model, stack, (2, 3))


def test_biases_of_shed_layers_left_trainable_are_noticed() -> None:
    model = adapted("opt", bias="lora_only")
    stack = find_layers(model)
    narrow(model, stack, LAYERS)
    stack.layers[0].fc1.bias.requires_grad_(True)
    with pytest.raises(PlacementError, match=r"layers\.0\.fc1\.bias` train and should not"):
        verify_placement(model, stack, LAYERS)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        *[(family, {}) for family in FAMILIES],
        ("llama", {"use_dora": True, "target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
        ("opt", {"bias": "lora_only", "lora_bias": True}),
        ("opt", {"bias": "all", "modules_to_save": ["final_layer_norm"]}),
        ("bert", {"target_modules": "all-linear", "bias": "all"}),
        ("gpt2", {"trainable_token_indices": [3, 4]}),
        ("gpt2", {"trainable_token_indices": {"wpe": [0]}, "modules_to_save": ["ln_f"]}),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_what_is_expected_is_what_peft_trains_with_layers_to_transform(family: str, changes: dict[str, Any]) -> None:
    """The oracle is PEFT itself, given the layers and, by full name, the targets outside them."""
    everywhere = adapted(family, **changes)
    stack = find_layers(everywhere)
    layer_of = {site.name: stack.layer_of(site.path) for site in adapter_sites(everywhere)}
    inside = {name.split(f".{stack.pattern}.{layer}.")[1] for name, layer in layer_of.items() if layer is not None}
    outside = [name for name, layer in layer_of.items() if layer is None]
    layered = {"target_modules": [*inside, *outside], "layers_to_transform": [1, 3], "layers_pattern": stack.pattern}
    by_hand = adapted(family, **(changes | layered))
    narrow(everywhere, stack, LAYERS)
    assert expected_trainable(everywhere, stack, LAYERS) == set(trainable(by_hand))
    verify_placement(everywhere, stack, LAYERS)
    verify_placement(by_hand, find_layers(by_hand), LAYERS)


@pytest.mark.filterwarnings("ignore:.*`save_embedding_layers`")
def test_adapters_tied_to_the_embedding_are_expected() -> None:
    model = adapted("opt", target_modules=["q_proj", "embed_tokens"], ensure_weight_tying=True)
    assert any("lm_head.lora_A" in name for name in trainable(model))
    verify_placement(model, find_layers(model), (0, 1, 2, 3))


@pytest.fixture(params=["safetensors", "bin"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    model = adapted("llama", target_modules=["q_proj", "embed_tokens"])
    narrow(model, find_layers(model), LAYERS)
    train(model, batch_of("llama"), steps=1)
    if request.param == "safetensors":
        model.save_pretrained(tmp_path, save_embedding_layers=False)
    else:  # as PEFT below 0.6 and torch-only setups wrote it
        torch.save(get_peft_model_state_dict(model, save_embedding_layers=False), tmp_path / "adapter_model.bin")
    return tmp_path


def placed(layers: tuple[int, ...]) -> tuple[PeftModel, LayerStack]:
    model = adapted("llama", target_modules=["q_proj", "embed_tokens"])
    stack = find_layers(model)
    narrow(model, stack, layers)
    return model, stack


def test_a_checkpoint_of_the_same_placement_passes(checkpoint: Path) -> None:
    check_checkpoint(checkpoint, *placed(LAYERS))


@pytest.mark.parametrize("layers", [(2, 3), (1, 2, 3), (3,)])
def test_a_checkpoint_of_other_layers_is_refused(checkpoint: Path, layers: tuple[int, ...]) -> None:
    with pytest.raises(
        PlacementError, match=r"adapts layers 1, 3 of 0–3 and the model layers? [123–, ]+ of 0–3: .*q_proj"
    ):
        check_checkpoint(checkpoint, *placed(layers))


def test_a_checkpoint_of_other_modules_in_the_same_layers_is_refused(checkpoint: Path) -> None:
    model = adapted("llama", target_modules=["q_proj", "v_proj", "embed_tokens"])
    stack = find_layers(model)
    narrow(model, stack, LAYERS)
    with pytest.raises(PlacementError, match=r"layers\.1\.self_attn\.v_proj`, .* only in the model"):
        check_checkpoint(checkpoint, model, stack)


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlacementError, match=r"neither adapter_model\.safetensors nor adapter_model\.bin"):
        check_checkpoint(tmp_path, *placed(LAYERS))


def test_peft_alone_says_nothing_of_other_layers(tmp_path: Path) -> None:
    """Why `check_checkpoint` exists: the foreign checkpoint loads, and layer 2 stays untrained."""
    saved, _ = placed(LAYERS)
    train(saved, batch_of("llama"), steps=1)
    saved.save_pretrained(tmp_path, save_embedding_layers=False)
    model, stack = placed((2, 3))
    model.load_adapter(tmp_path, "default", is_trainable=True)
    assert not stack.layers[2].self_attn.q_proj.lora_B["default"].weight.any()
    assert stack.layers[3].self_attn.q_proj.lora_B["default"].weight.any()
    reference = PeftModel.from_pretrained(tiny_model("llama"), tmp_path)
    assert not torch.equal(logits_of(model, batch_of("llama")), logits_of(reference, batch_of("llama")))
