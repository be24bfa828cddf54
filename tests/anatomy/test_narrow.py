"""A narrowed model is the model that a hand-written `layers_to_transform` builds, and can be taken back exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.tuners.lora import LoraLayer

from adapted import (
    TARGETS,
    adapted,
    adapter_names,
    assert_same,
    batch_of,
    fingerprint,
    logits_of,
    lora_config,
    take_values,
    train,
    trainable,
    with_adapters,
)
from layercard.anatomy.layers import find_layers
from layercard.anatomy.narrow import narrow
from layercard.anatomy.verify import verify_placement
from layercard.errors import PlacementError
from tiny import FAMILIES, GQA

LAYERS = (1, 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_narrowed_training_equals_hand_written_layers_to_transform(family: str) -> None:
    model = adapted(family, lora_dropout=0.1)
    by_hand = take_values(adapted(family, lora_dropout=0.1, layers_to_transform=list(LAYERS)), model)
    narrow(model, find_layers(model), LAYERS)
    batch = batch_of(family)

    assert trainable(model) == trainable(by_hand)
    assert model.base_model.targeted_module_names == by_hand.base_model.targeted_module_names
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in by_hand.named_parameters()]
    assert torch.equal(logits_of(model, batch), logits_of(by_hand, batch))
    before = logits_of(model, batch)
    train(model, batch)
    train(by_hand, batch)
    assert not torch.equal(logits_of(model, batch), before)
    for (name, ours), (_, theirs) in zip(model.named_parameters(), by_hand.named_parameters(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"init_lora_weights": "gaussian"},
        {"use_rslora": True},
        {"use_dora": True},
        {"lora_bias": True},
        {"bias": "all"},
        {"target_modules": [*TARGETS["opt"], "embed_tokens"]},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Careful, disabling adapter layers with bias configured")
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")  # OPT ties its output layer
def test_taking_untrained_adapters_out_changes_no_logits(changes: dict[str, Any]) -> None:
    model = adapted("opt", **changes)
    batch = batch_of("opt")
    with_all = logits_of(model, batch)
    with model.disable_adapter():
        without = logits_of(model, batch)
    narrow(model, find_layers(model), (2,))
    assert torch.equal(logits_of(model, batch), with_all)
    assert torch.equal(without, with_all)
    verify_placement(model, find_layers(model), (2,))


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"target_modules": "all-linear"}),
        ("opt", {"bias": "lora_only"}),
        ("bert", {"target_modules": "all-linear", "use_dora": True}),
        ("gpt2", {"target_modules": ["c_attn", "lm_head"], "rank_pattern": {r"h\.0\.attn\.c_attn": 2}}),
    ],
)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")  # GPT-2 ties its output layer
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True but the target module")  # its lm_head is no Conv1D
def test_undo_and_all_layers_restore_exactly(family: str, changes: dict[str, Any]) -> None:
    model = adapted(family, **changes)
    stack = find_layers(model)
    found = fingerprint(model)
    narrowing = narrow(model, stack, LAYERS)
    placed = fingerprint(model)
    assert found["modules"] != placed["modules"]
    assert found["config"] != placed["config"]

    with narrowing.all_layers():
        assert_same(found, fingerprint(model))
        model(**batch_of(family)).loss.backward()
        assert all(p.grad is not None for n, p in model.named_parameters() if "lora_B" in n)
    assert_same(placed, fingerprint(model))
    model.zero_grad()
    with narrowing.all_layers():
        assert not [name for name, p in model.named_parameters() if p.grad is not None]

    narrowing.undo()
    narrowing.undo()
    assert_same(found, fingerprint(model))
    with pytest.raises(PlacementError, match="undone"), narrowing.all_layers():
        pass


def test_placed_gradients_survive_an_all_layer_block() -> None:
    model = adapted("opt", bias="lora_only")
    narrowing = narrow(model, find_layers(model), LAYERS)
    model(**batch_of("opt")).loss.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    with narrowing.all_layers():
        pass
    assert grads.keys() == {name for name, p in model.named_parameters() if p.grad is not None}
    assert grads.keys() == set(trainable(model))
    assert all(torch.equal(grads[name], p.grad) for name, p in model.named_parameters() if name in grads)


def test_all_layers_restores_the_placement_when_its_block_fails() -> None:
    model = adapted("llama")
    narrowing = narrow(model, find_layers(model), LAYERS)
    placed = fingerprint(model)
    with pytest.raises(RuntimeError, match="out of memory"), narrowing.all_layers():
        raise RuntimeError("out of memory")
    assert_same(placed, fingerprint(model))


def test_shed_adapters_follow_mode_and_dtype() -> None:
    model = adapted("llama", lora_dropout=0.5)
    narrowing = narrow(model, find_layers(model), LAYERS)
    model.eval()
    model.to(torch.bfloat16)
    with narrowing.all_layers():
        assert {p.dtype for name, p in model.named_parameters() if "lora_" in name} == {torch.bfloat16}
        assert not [name for name, module in model.named_modules() if module.training]
        assert torch.isfinite(logits_of(model, batch_of("llama"))).all()


def test_lora_only_biases_of_shed_layers_are_frozen_and_come_back() -> None:
    model = adapted("opt", bias="lora_only")
    stack = find_layers(model)
    all_biases = {name for name in trainable(model) if name.endswith(".bias")}
    narrowing = narrow(model, stack, LAYERS)
    placed = {name for name in trainable(model) if name.endswith(".bias")}
    assert placed == {name for name in all_biases if stack.layer_of(name) in LAYERS}
    assert placed < all_biases
    with narrowing.all_layers():
        assert {name for name in trainable(model) if name.endswith(".bias")} == all_biases


def test_narrowing_to_every_layer_touches_nothing() -> None:
    model = adapted("llama", target_modules=r".*\.(q_proj|down_proj)")
    found = fingerprint(model)
    narrowing = narrow(model, find_layers(model), (0, 1, 2, 3))
    assert narrowing.shed_names == ()
    assert_same(found, fingerprint(model))


SUBSETS = st.sets(st.integers(0, 3), min_size=1)
SHARED = {
    "names": adapted("llama"),
    "all-linear": adapted("phi3", target_modules="all-linear"),
    "regex": adapted("bert", target_modules=r".*layer\.\d+\.attention\.self\.(query|value)"),
}


@pytest.mark.parametrize("spelling", SHARED)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(layers=SUBSETS)
def test_any_subset_of_layers_is_placed_verified_and_undone(spelling: str, layers: set[int]) -> None:
    model = SHARED[spelling]
    stack = find_layers(model)
    found, everything = fingerprint(model), set(adapter_names(model))
    narrowing = narrow(model, stack, sorted(layers))
    verify_placement(model, stack, sorted(layers))
    assert set(adapter_names(model)) == {name for name in everything if stack.layer_of(name) in {None, *layers}}
    assert narrowing.layers == tuple(sorted(layers))
    narrowing.undo()
    assert_same(found, fingerprint(model))


@pytest.mark.parametrize("layers", [(), (4,), (-1, 2)])
def test_layers_that_do_not_exist_are_refused_and_nothing_is_touched(layers: tuple[int, ...]) -> None:
    model = adapted("llama")
    found = fingerprint(model)
    with pytest.raises(PlacementError, match="the model has layers 0–3"):
        narrow(model, find_layers(model), layers)
    assert_same(found, fingerprint(model))


def test_a_chosen_layer_without_adapters_is_refused() -> None:
    model = adapted("llama", layers_to_transform=[1, 2])
    found = fingerprint(model)
    with pytest.raises(
        PlacementError, match="layer 0 of 0–3, where the model has no adapters; it has them in layers 1–2"
    ):
        narrow(model, find_layers(model), (0, 1))
    assert_same(found, fingerprint(model))


def test_a_failure_half_way_leaves_the_model_as_it_was() -> None:
    model = adapted("llama")
    attention = find_layers(model).layers[2].self_attn

    class Stubborn(type(attention)):
        def __setattr__(self, name: str, value: Any) -> None:
            if name == "v_proj" and not isinstance(value, LoraLayer):
                raise RuntimeError("this module cannot be replaced")
            super().__setattr__(name, value)

    attention.__class__ = Stubborn
    found = fingerprint(model)
    with pytest.raises(RuntimeError, match="cannot be replaced"):
        narrow(model, find_layers(model), (1,))
    assert_same(found, fingerprint(model))


def test_a_vision_tower_with_the_same_layer_numbers_keeps_what_it_had() -> None:
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 4}
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**vision, image_size=8, patch_size=4),
        text_config=hf.LlamaConfig(**GQA),
        image_token_index=5,
    )
    torch.manual_seed(0)
    base = hf.LlavaForConditionalGeneration(config)
    regex = r".*language_model.*\.(q_proj|v_proj)"
    for targets, in_tower in ((regex, 0), (["q_proj", "v_proj"], 8)):
        model = with_adapters(base, lora_config("llama", target_modules=targets))
        stack = find_layers(model, path="language_model.layers")
        narrow(model, stack, (1,))
        verify_placement(model, stack, (1,))
        outside = {n.split(".lora_")[0] for n in adapter_names(model) if stack.layer_of(n) is None}
        assert len(outside) == in_tower
        base = model.unload()
