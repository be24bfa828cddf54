"""What the checks try things on: a tiny Llama with random weights, and batches of random tokens, made offline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from layercard.random_state import random_state

VOCABULARY = 64
IGNORED = -100


def tiny_llama(num_layers: int = 4) -> nn.Module:
    """Return a Llama of `num_layers` layers of width 32, always with the same weights; each layer's are larger than the last's.

    Layers of one size would differ in activations by rounding alone.
    """
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    with random_state(0):
        model: nn.Module = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".layers." in name and weight.dim() == 2:
                weight.mul_(2.0 + int(name.split(".layers.")[1].split(".")[0]))
    return model


def examples(count: int) -> list[list[int]]:
    """Return `count` token sequences of 5 to 14 tokens, always the same."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(5, 15, (count,), generator=generator).tolist()
    return [torch.randint(1, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


def batches(sequences: Sequence[Sequence[int]], size: int) -> list[dict[str, Tensor]]:
    """Return the sequences in batches of `size` rows, padded on the right; every token but the first is a label."""
    return [_padded(sequences[i : i + size]) for i in range(0, len(sequences), size)]


def _padded(rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    width = max(map(len, rows))

    def tensor(fill: int, values: Any) -> Tensor:
        return torch.tensor([[*values(row), *[fill] * (width - len(row))] for row in rows])

    return {
        "input_ids": tensor(0, list),
        "attention_mask": tensor(0, lambda row: [1] * len(row)),
        "labels": tensor(IGNORED, list),
    }
