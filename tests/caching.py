"""What trainings with and without the prefix cache are made of, and how far apart their weights are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from tiny import collate

LIMIT = 2**24
NO_DROPOUT: dict[str, dict[str, float]] = {
    "gpt2": {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    "opt": {"dropout": 0.0},
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "deberta": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "pooler_dropout": 0.0},
}


def shuffled(examples: list[Any], epochs: int, *, alike: bool = False) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of two; in every epoch others, or with `alike` the same in another order."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        if alike:
            pairs = torch.arange(len(examples)).view(-1, 2)[torch.randperm(len(examples) // 2, generator=generator)]
        else:
            pairs = torch.randperm(len(examples), generator=generator).view(-1, 2)
        for pair in pairs.tolist():
            yield collate([examples[i] for i in pair])


def apart(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """The largest relative error of a weight matrix."""
    return max(float((a - b).float().norm() / b.float().norm()) for a, b in zip(found, expected, strict=True))
