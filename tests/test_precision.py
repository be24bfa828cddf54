"""The dtype that is chosen is one in which the machine at hand is fast; the oracle is a longer measurement."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
import torch

from layercard import precision
from layercard.precision import fast_dtype, slow_on


def test_float32_and_gpus_are_never_slow() -> None:
    assert slow_on("cpu", torch.float32) is None
    assert slow_on("cuda", torch.bfloat16) is None
    assert slow_on("cpu", torch.int8) is None


def seconds(dtype: torch.dtype) -> float:
    a, b = torch.randn(256, 768).to(dtype), torch.randn(768, 768).to(dtype)
    found = []
    for _ in range(3):
        began = time.perf_counter()
        a @ b
        found.append(time.perf_counter() - began)
    return min(found)


def test_what_is_told_of_this_machine_agrees_with_a_larger_product() -> None:
    precision.slowdown.cache_clear()
    told, longer = slow_on("cpu", torch.bfloat16), seconds(torch.bfloat16) / seconds(torch.float32)
    if longer < 0.9 or longer > 2.0:  # between them a machine may be called either
        assert (told is not None) == (longer > 1)
        assert fast_dtype("cpu", torch.bfloat16) == (torch.float32 if longer > 1 else torch.bfloat16)


def test_the_sentence_names_processor_dtype_and_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "slowdown", lambda dtype, threads: 5.43)
    kind = torch.backends.cpu.get_cpu_capability()
    assert slow_on("cpu", torch.bfloat16) == f"This CPU ({kind}) takes 5.4 times as long in bfloat16 as in float32."
    assert fast_dtype("cpu", torch.bfloat16) == torch.float32


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "NO AVX"), reason="nothing to limit")
def test_a_processor_held_to_avx2_is_found_slow_in_bfloat16() -> None:
    """A real process whose torch and oneDNN are told to use AVX2 alone, as most laptops have it."""
    limited = {**os.environ, "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1"}
    code = "import torch; from layercard.precision import slow_on; print(slow_on('cpu', torch.bfloat16))"
    done = subprocess.run([sys.executable, "-c", code], env=limited, capture_output=True, text=True, check=True)
    assert "in bfloat16 as in float32" in done.stdout
