"""The devices of this machine, their free memory, and which dtypes are fast on them."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import torch

from layercard.doctor.check import Check, ok, warning
from layercard.precision import SLOW, name_of, slowdown
from layercard.sizes import bytes_text


def check_devices() -> Iterator[Check]:
    """Yield a check for the CPU and for each GPU: what it is, and how much of its memory is free."""
    memory = psutil.virtual_memory()
    kind, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    yield ok("cpu", f"{kind}, {threads} threads, {_free(memory.available, memory.total)}")
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        yield ok(f"cuda:{number}", f"{torch.cuda.get_device_name(number)}, {_free(free, total)}")
    if torch.version.cuda is not None and not torch.cuda.is_available():
        yield warning(
            "cuda",
            f"torch was built for CUDA {torch.version.cuda} and finds no GPU",
            "On a machine with a GPU, check its driver with `nvidia-smi`; elsewhere nothing is wrong.",
        )


def check_dtypes() -> Iterator[Check]:
    """Yield a check for each dtype of 16 bits: how long a product takes on the CPU beside float32.

    Only a slow bfloat16 is a warning: trainers take it by default, and float16 is slow on nearly every CPU.
    """
    for dtype in (torch.bfloat16, torch.float16):
        times = slowdown(dtype, torch.get_num_threads())
        found = f"{times:.2f} times float32's time on this CPU"
        if dtype is torch.float16 or times < SLOW or torch.cuda.is_available():
            yield ok(name_of(dtype), found)
        else:
            advice = "Train in float32 here (`bf16=False`); `layercard probe` and `plan` load float32 by themselves."
            yield warning(name_of(dtype), f"{found}: slow", advice)


def _free(free: int, total: int) -> str:
    return f"{bytes_text(free)} free of {bytes_text(total)}"
