"""Half precision and quantized base weights: the same numbers as autograd on the same weights, within their rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from oracle import adapted, energies, mean_norms

import layercard
from layercard.pipeline.probe import score
from tiny import collate, tiny_examples, tiny_model

EXAMPLES = 6


def expected(model: Any, examples: list[dict[str, Any]]) -> np.ndarray:
    singles = [collate([e]) for e in examples]
    return mean_norms(model, singles, 4) / np.sqrt(energies(model, singles, 4, lambda *_: True))


@pytest.fixture
def quantized(tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    tiny_model("llama", hidden_size=128, intermediate_size=256, num_key_value_heads=4).save_pretrained(tmp_path)
    return hf.AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=hf.BitsAndBytesConfig(**request.param), dtype=torch.float32
    )


NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}


@pytest.mark.parametrize(
    ("quantized", "tolerance"),
    [(NF4, 1e-4), ({"load_in_8bit": True}, 2e-2)],
    indirect=["quantized"],
    ids=["nf4", "int8"],
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_quantized_weights_agree_with_autograd(quantized: Any, tolerance: float, checkpointing: bool) -> None:
    model = adapted(quantized, "llama")
    examples = tiny_examples(EXAMPLES)
    statistics = layercard.probe(model, [collate(examples)], checkpointing=checkpointing)
    np.testing.assert_allclose(score(statistics, "resnorm").raw, expected(model, examples), rtol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 5e-2), (torch.float16, 1e-2)])
def test_half_precision_agrees_with_float32(dtype: torch.dtype, tolerance: float) -> None:
    examples = tiny_examples(EXAMPLES)
    half = adapted(tiny_model("llama", dtype=dtype), "llama")
    full = adapted(tiny_model("llama", dtype=dtype).float(), "llama")
    statistics = layercard.probe(half, [collate(examples)])
    np.testing.assert_allclose(score(statistics, "resnorm").raw, expected(full, examples), rtol=tolerance)


def test_fp16_gradients_do_not_vanish() -> None:
    """A loss scaled down until unscaled fp16 gradients would be zero still gives the same relative norms."""
    model = adapted(tiny_model("llama", dtype=torch.float16), "llama")
    batch = collate(tiny_examples(EXAMPLES))
    plain = score(layercard.probe(model, [batch], scores=["gradient_norm"]), "gradient_norm").raw
    small = layercard.probe(model, [batch], scores=["gradient_norm"], loss=lambda m, x: m(**x).loss.float() * 2.0**-8)
    np.testing.assert_allclose(score(small, "gradient_norm").raw * 2.0**8, plain, rtol=2e-2)


def test_an_overflowing_fp16_scale_is_lowered() -> None:
    model = adapted(tiny_model("llama", dtype=torch.float16), "llama")
    batch = collate(tiny_examples(EXAMPLES))
    plain = score(layercard.probe(model, [batch], scores=["gradient_norm"]), "gradient_norm").raw
    large = layercard.probe(model, [batch], scores=["gradient_norm"], loss=lambda m, x: m(**x).loss.float() * 2.0**9)
    np.testing.assert_allclose(score(large, "gradient_norm").raw / 2.0**9, plain, rtol=2e-2)


def test_fp16_autocast_over_float32_weights_scales_the_loss_too() -> None:
    """Activations decide, not weights: trainers run float32 weights under fp16 autocast."""
    model = adapted(tiny_model("llama"), "llama")
    batch = collate(tiny_examples(EXAMPLES))

    def loss(model: Any, inputs: Any) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.float16):
            return model(**inputs).loss * 2.0**-10

    plain = score(layercard.probe(model, [batch], scores=["gradient_norm"]), "gradient_norm").raw
    cast = score(layercard.probe(model, [batch], scores=["gradient_norm"], loss=loss), "gradient_norm").raw
    np.testing.assert_allclose(cast * 2.0**10, plain, rtol=2e-2)
