"""The probe agrees with one-example-at-a-time autograd through real PEFT adapters with the same A."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from oracle import adapted, energies, mean_norms

import layercard
from layercard.pipeline.probe import score
from tiny import ENCODERS, FAMILIES, collate, pack, tiny_examples, tiny_model

EXAMPLES = 6


def token_shaped(target: str, x: torch.Tensor, length: int) -> bool:
    """DeBERTa's projections read a table of relative positions too; its rows are no tokens."""
    return len(x) == length


def expected_resnorm(model: Any, examples: list[dict[str, Any]], layers: int = 4) -> np.ndarray:
    singles = [collate([example]) for example in examples]
    return mean_norms(model, singles, layers) / np.sqrt(energies(model, singles, layers, token_shaped))


@pytest.mark.parametrize("family", FAMILIES)
def test_resnorm_equals_autograd_one_example_at_a_time(family: str) -> None:
    model = adapted(tiny_model(family), family)
    examples = tiny_examples(EXAMPLES, encoder=family in ENCODERS)
    expected = expected_resnorm(model, examples)
    statistics = layercard.probe(model, [collate(examples[:4]), collate(examples[4:])])
    np.testing.assert_allclose(score(statistics, "resnorm").raw, expected, rtol=1e-5)
    assert statistics.examples == EXAMPLES
    assert statistics.tokens == sum(len(e["input_ids"]) for e in examples)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "bert", "deberta"])
def test_checkpointing_changes_nothing(family: str) -> None:
    model = adapted(tiny_model(family), family)
    batch = collate(tiny_examples(EXAMPLES, encoder=family in ENCODERS))
    plain, checkpointed = (
        score(layercard.probe(model, [batch], checkpointing=on), "resnorm").raw for on in (False, True)
    )
    np.testing.assert_allclose(checkpointed, plain, rtol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "gemma3"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_documents_count_one_by_one(family: str, checkpointing: bool) -> None:
    model = adapted(tiny_model(family), family)
    examples = tiny_examples(EXAMPLES)
    statistics = layercard.probe(model, [pack(examples[:4]), pack(examples[4:])], checkpointing=checkpointing)
    np.testing.assert_allclose(score(statistics, "resnorm").raw, expected_resnorm(model, examples), rtol=1e-5)
    assert statistics.examples == EXAMPLES


def test_mean_gradient_is_the_gradient_of_the_mean_of_example_losses() -> None:
    model = adapted(tiny_model("llama"), "llama")
    examples = tiny_examples(EXAMPLES)
    statistics = layercard.probe(model, [collate(examples)], scores=["resnorm_algorithm1"])
    from oracle import gradients

    total: dict[Any, Any] = {}
    for example in examples:
        for key, gradient in gradients(model, collate([example])).items():
            total[key] = total.get(key, 0) + gradient / len(examples)
    expected = [np.sqrt(sum((g**2).sum() for (layer, _), g in total.items() if layer == i)) for i in range(4)]
    assert statistics.norm_of_mean_gradient is not None
    np.testing.assert_allclose(statistics.norm_of_mean_gradient, expected, rtol=1e-5)


def test_per_module_norms_equal_autograd() -> None:
    from oracle import gradients

    model = adapted(tiny_model("llama"), "llama")
    examples = tiny_examples(EXAMPLES)
    statistics = layercard.probe(model, [collate(examples)])
    assert statistics.module_gradient_norm is not None
    each = [gradients(model, collate([e])) for e in examples]
    for column, target in enumerate(statistics.targets):
        expected = [np.mean([np.linalg.norm(g[layer, target]) for g in each]) for layer in range(4)]
        np.testing.assert_allclose(statistics.module_gradient_norm[:, column], expected, rtol=1e-5)


@pytest.mark.parametrize("settings", [{"use_rslora": True}, {"alpha_pattern": {"q_proj": 64}}])
def test_lora_scale_is_divided_out(settings: dict[str, Any]) -> None:
    examples = tiny_examples(EXAMPLES)
    plain = layercard.probe(adapted(tiny_model("llama"), "llama"), [collate(examples)])
    scaled = layercard.probe(adapted(tiny_model("llama"), "llama", **settings), [collate(examples)])
    np.testing.assert_allclose(score(scaled, "resnorm").raw, score(plain, "resnorm").raw, rtol=1e-6)
