"""The stack of layers is found in every family, and never guessed."""

from __future__ import annotations

from typing import Any

import pytest
import transformers as hf
from oracle import adapted
from peft import LoraConfig, get_peft_model
from torch import nn

from layercard import plugins
from layercard.anatomy.layers import LayerStack, describe, find_layers, sole_stack
from layercard.anatomy.targets import find_targets, initial_a, weights_out_of_reach
from layercard.errors import LayersNotFoundError, ModelError
from layercard.hookspecs import hookimpl
from layercard.pipeline.before.looking import locate_layers
from tiny import FAMILIES, GQA, SMALL, tiny_model

PATHS = {
    "gpt2": "transformer.h",
    "opt": "model.decoder.layers",
    "bert": "bert.encoder.layer",
    "deberta": "deberta.encoder.layer",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_found_by_their_path(family: str) -> None:
    model = tiny_model(family, num_layers=3)
    stack = find_layers(model)
    assert stack.path == PATHS.get(family, "model.layers")
    assert len(stack) == 3
    for index, layer in enumerate(stack.layers):
        assert model.get_submodule(stack.name(index)) is layer
        assert stack.layer_of(f"{stack.name(index)}.anything.weight") == index


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_change_neither_layers_nor_targets(family: str) -> None:
    model = tiny_model(family)
    bare = {(t.layer, t.name): t.module for t in find_targets(model, find_layers(model))}
    peft_model = adapted(model, family)
    stack = find_layers(peft_model)
    assert stack.path == f"base_model.model.{PATHS.get(family, 'model.layers')}"
    wrapped = {(t.layer, t.name): t.module for t in find_targets(peft_model, stack)}
    assert wrapped.keys() <= bare.keys()
    assert all(bare[key] is module for key, module in wrapped.items())


def test_two_stacks_are_named_and_can_be_chosen_between() -> None:
    config = hf.T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=16, num_layers=2, num_decoder_layers=3, num_heads=2)
    model = hf.T5ForConditionalGeneration(config)
    with pytest.raises(LayersNotFoundError, match=r"`decoder.block` \(3 layers\) and `encoder.block` \(2 layers\)"):
        find_layers(model)
    assert len(find_layers(model, path="decoder.block")) == 3
    with pytest.raises(LayersNotFoundError, match="fits 0 stacks"):
        find_layers(model, path="decoder.blocks")


def test_the_only_stack_with_adapters_is_meant() -> None:
    config = hf.T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=16, num_layers=2, num_decoder_layers=3, num_heads=2)
    decoder, both = (
        get_peft_model(hf.T5ForConditionalGeneration(config), LoraConfig(r=2, target_modules=targets))
        for targets in (r"decoder\..*\.q", ["q"])
    )
    assert find_layers(decoder).path == "base_model.model.decoder.block"
    assert find_layers(decoder, path="encoder.block").path == "base_model.model.encoder.block"
    with pytest.raises(LayersNotFoundError, match="2 stacks"):
        find_layers(both)
    names = [name for name, _ in hf.T5ForConditionalGeneration(config).named_modules()]
    assert sole_stack(both.get_base_model(), ["decoder.block.0.layer.0"]) == "decoder.block"
    assert sole_stack(both.get_base_model(), names) is None
    assert sole_stack(tiny_model("llama"), ["model.layers.0"]) is None


def test_a_model_without_layers_says_what_to_do() -> None:
    with pytest.raises(LayersNotFoundError, match="locate_decoder_layers"):
        find_layers(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))


def test_shared_layers_are_refused() -> None:
    model = hf.AlbertForSequenceClassification(hf.AlbertConfig(**SMALL, embedding_size=16))
    with pytest.raises(ModelError, match="shared layers"):
        find_layers(model)


def test_experts_of_a_mixture_are_no_stack_of_their_own() -> None:
    model = hf.MixtralForCausalLM(hf.MixtralConfig(**GQA, num_local_experts=2))
    stack = find_layers(model)
    assert stack.path == "model.layers"
    assert weights_out_of_reach(stack) == ("mlp.experts.down_proj", "mlp.experts.gate_up_proj")


def test_a_plugin_answers_before_the_search() -> None:
    model = tiny_model("llama")
    answer = LayerStack("model.layers", tuple(model.model.layers)[:2])

    class Plugin:
        @hookimpl
        def locate_decoder_layers(self, model: Any) -> LayerStack:
            return answer

    extensions = plugins.extensions(plugins.build_manager([("mine", Plugin())], entry_points=False))
    assert locate_layers(model, None, extensions) is answer
    assert len(locate_layers(model, "model.layers", extensions)) == 4


def test_initial_a_does_not_depend_on_order_and_differs_by_layer_and_seed() -> None:
    stack = find_layers(tiny_model("llama"))
    first, second = (find_targets(tiny_model("llama"), stack) for _ in range(2))
    for a, b in zip(first, reversed(list(reversed(second))), strict=True):
        assert initial_a(a, 4, 0).equal(initial_a(b, 4, 0))
    drawn = [initial_a(t, 4, seed) for t in first for seed in (0, 1) if t.in_features == 32]
    assert len({tuple(d.flatten().tolist()) for d in drawn}) == len(drawn)
    assert all(d.abs().max() <= 32**-0.5 for d in drawn)


@pytest.mark.parametrize(
    ("layers", "text"),
    [([15, 16, 17], "layers 15–17 of 0–29"), ([3], "layer 3 of 0–29"), ([9, 3, 4], "layers 3–4, 9 of 0–29")],
)
def test_layers_are_described_as_people_read_them(layers: list[int], text: str) -> None:
    assert describe(layers, 30) == text
