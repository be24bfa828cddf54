"""Which dtype a model runs fast in on the device at hand.

Processors differ: with AVX512-BF16 or AMX a bfloat16 product takes a half to a third of float32's time, without them it takes
several times as long, and float16 is slow on nearly every CPU. `slow_on` measures one small product in both, once a
process; GPUs are taken to be fast in what they are given.
"""

from __future__ import annotations

import time
from functools import cache

import torch

ROWS, WIDTH = 128, 512
REPETITIONS = 3
SLOW = 1.3
"""How many times as long as in float32 a product may take before float32 is the better choice."""


def slow_on(device: torch.device | str, dtype: torch.dtype) -> str | None:
    """Return in a sentence how slow `dtype` is on this device beside float32, None where it is not."""
    if torch.device(device).type != "cpu" or not dtype.is_floating_point or dtype in (torch.float32, torch.float64):
        return None
    times = slowdown(dtype, torch.get_num_threads())
    if times < SLOW:
        return None
    kind = torch.backends.cpu.get_cpu_capability()
    return f"This CPU ({kind}) takes {times:.1f} times as long in {name_of(dtype)} as in float32."


def fast_dtype(device: torch.device | str, dtype: torch.dtype) -> torch.dtype:
    """Return `dtype` where this device is fast in it, float32 elsewhere."""
    return dtype if slow_on(device, dtype) is None else torch.float32


@cache
def slowdown(dtype: torch.dtype, threads: int) -> float:
    """Return how many times as long a matrix product takes on this CPU in `dtype` as in float32.

    `threads` is what torch runs with, so that another number is measured anew.
    """
    return _seconds(dtype) / _seconds(torch.float32)


def _seconds(dtype: torch.dtype) -> float:
    """The fewest seconds of a product of (ROWS, WIDTH) by (WIDTH, WIDTH), after one to warm up."""
    left, right = torch.ones(ROWS, WIDTH, dtype=dtype), torch.ones(WIDTH, WIDTH, dtype=dtype)
    found = []
    for _ in range(1 + REPETITIONS):
        began = time.perf_counter()
        torch.mm(left, right)
        found.append(time.perf_counter() - began)
    return min(found[1:])


def name_of(dtype: torch.dtype) -> str:
    """Return a dtype as people write it, such as `bfloat16`."""
    return str(dtype).removeprefix("torch.")
