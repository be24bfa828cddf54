"""Which dtype of frozen weights is fast on this machine, found by timing the products that training is made of."""

from __future__ import annotations

import time

import torch

ROWS, INNER, OUTER = 160, 576, 1536
REPEATS, ROUNDS = 20, 5
CLEARLY = 0.8
"""bfloat16 is taken where it needs at most this share of float32's time."""


def fast_dtype() -> torch.dtype:
    """Return bfloat16 where products in it are clearly faster (AVX512-BF16, AMX), else float32."""
    seconds = {torch.float32: [], torch.bfloat16: []}
    for _ in range(ROUNDS):
        for dtype, found in seconds.items():
            found.append(_product_seconds(dtype))
    return torch.bfloat16 if min(seconds[torch.bfloat16]) < CLEARLY * min(seconds[torch.float32]) else torch.float32


def _product_seconds(dtype: torch.dtype) -> float:
    inputs, weight = torch.ones(ROWS, INNER, dtype=dtype), torch.ones(OUTER, INNER, dtype=dtype)
    began = time.process_time()
    for _ in range(REPEATS):
        torch.nn.functional.linear(inputs, weight)
    return time.process_time() - began
