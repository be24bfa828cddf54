"""Which models FSDP2 cuts into shards is known by their weights before any is moved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from adapted import adapted, lora_config, with_adapters
from layercard.anatomy.layers import find_layers
from layercard.probing.shard_copy import bytes_in_shards, why_not_in_shards
from peft_matrix.bases import int8, nf4
from tiny import tiny_model


def reason(model: Any) -> str | None:
    return why_not_in_shards(model, find_layers(model))


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "bert"])
def test_plain_weights_with_adapters_are(family: str) -> None:
    assert reason(adapted(family, dtype=torch.bfloat16)) is None


@pytest.mark.parametrize("load", [nf4, int8])
def test_quantized_weights_are_not(load: Any, tmp_path: Path) -> None:
    said = reason(with_adapters(load(tmp_path), lora_config("llama")))
    assert said is not None
    assert "base_model.model.model.layers.0." in said
    assert "quantized weights are not cut into shards" in said


def test_single_numbers_are_not() -> None:
    model = tiny_model("llama")
    model.model.layers[1].mlp.gain = nn.Parameter(torch.tensor(1.0))
    assert reason(model) == "`model.layers.1.mlp.gain` is one number, which FSDP2 does not cut into shards."


def test_weights_that_layers_share_are_not() -> None:
    model = tiny_model("llama")
    model.model.layers[3].mlp.up_proj.weight = model.model.layers[1].mlp.up_proj.weight
    assert reason(model) == (
        "`model.layers.3.mlp.up_proj.weight` is used outside its layer too, and FSDP2 shards each layer for itself."
    )


def test_bytes_are_those_of_a_part_of_three_layers_and_of_what_lies_outside() -> None:
    model = tiny_model("gemma3", num_layers=3)  # embedding and head are one
    whole = sum(p.numel() * 4 for p in model.parameters())
    outside = sum(p.numel() * 4 for name, p in model.named_parameters() if ".layers." not in name)
    assert bytes_in_shards(model, find_layers(model)) == whole + (whole - outside) + outside  # one rank
