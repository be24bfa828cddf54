"""Bare models that are loaded as people load them: experts kept as parameters, and quantized ones."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from tiny import GQA, tiny_model, tiny_tokenizer

WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
"""A whole block of 64 4-bit weights a row."""


def mixtral(folder: Path) -> Any:
    """Return a mixture of experts."""
    torch.manual_seed(0)
    return hf.MixtralForCausalLM(hf.MixtralConfig(**GQA, num_local_experts=2, num_experts_per_tok=2))


def quantized(folder: Path, quantization: Any) -> Any:
    """Save a tiny Llama once, and load it quantized."""
    path = folder / "unquantized"
    if not path.exists():
        tiny_model("llama", **WIDE).save_pretrained(path)
    return hf.AutoModelForCausalLM.from_pretrained(path, quantization_config=quantization)


def gptq(folder: Path) -> Any:
    """Quantize a tiny Llama by GPTQ once, save it, and load it with the kernel that needs no compiler."""
    plain, path = folder / "plain", folder / "gptq"
    if not path.exists():
        tokenizer = tiny_tokenizer()
        tiny_model("llama", **WIDE).save_pretrained(plain)
        texts = [f"a text of so many words, {i}" for i in range(8)]
        config = hf.GPTQConfig(bits=4, group_size=32, backend="torch", dataset=texts, tokenizer=tokenizer)
        hf.AutoModelForCausalLM.from_pretrained(plain, quantization_config=config, device_map="cpu").save_pretrained(
            path
        )
    config = hf.GPTQConfig(bits=4, backend="torch")
    return hf.AutoModelForCausalLM.from_pretrained(path, quantization_config=config, device_map="cpu")


def _four_bits(folder: Path, **fields: Any) -> Any:
    return quantized(folder, hf.BitsAndBytesConfig(load_in_4bit=True, **fields))


def int8(folder: Path) -> Any:
    """Return LLM.int8() weights."""
    return quantized(folder, hf.BitsAndBytesConfig(load_in_8bit=True))


def _torchao(folder: Path, kind: str) -> Any:
    import torchao.quantization as ao

    return quantized(folder, hf.TorchAoConfig(getattr(ao, kind)()))


torchao_int8 = partial(_torchao, kind="Int8WeightOnlyConfig")
torchao_dynamic = partial(_torchao, kind="Int8DynamicActivationInt8WeightConfig")
nf4 = partial(_four_bits, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
fp4 = partial(_four_bits, bnb_4bit_quant_type="fp4")
