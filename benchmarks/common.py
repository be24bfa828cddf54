"""What the benchmarks share: the machine and versions beside every result, models of known shapes, alternating timing.

Ratios come from variants that alternate within one process; seconds are never compared across runs. Each benchmark
prints one JSON document last and, with `--write`, keeps it in `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from layercard.cost.timing import Timings, Variant, alternate
from layercard.files import write_text
from layercard.versions import installed_versions

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "layercard",
    "torch",
    "transformers",
    "peft",
    "trl",
    "axolotl",
    "accelerate",
    "bitsandbytes",
    "aletheia-lora",
)
LLAMA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def arguments(description: str) -> argparse.ArgumentParser:
    """Return a parser with the flags that every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--quick", action="store_true", help="a smoke test: small shapes, few rounds, numbers of no worth"
    )
    parser.add_argument("--write", action="store_true", help="keep the result in benchmarks/results/")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    return parser


def machine() -> dict[str, Any]:
    """Return what a reader needs to judge a number: processor, threads, versions."""
    versions = installed_versions(PACKAGES)
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": versions,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def llama(layers: int, hidden: int, *, vocab: int = 400, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """Return a random Llama of the given shape, heads of 64 (of 48 where 64 does not divide)."""
    head = 64 if hidden % 64 == 0 else 48
    config = hf.LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=hidden // head,
        num_key_value_heads=hidden // head,
        max_position_embeddings=2048,
        use_cache=False,
    )
    torch.manual_seed(seed)
    return hf.LlamaForCausalLM(config).to(dtype)


def token_batches(count: int, rows: int, width: int, vocab: int, *, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """Return `count` batches of full rows of random tokens, every token labelled."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        ids = torch.randint(3, vocab, (rows, width), generator=generator)
        batches.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()})
    return batches


def compare(steps: Mapping[str, Callable[[int], None]], *, rounds: int, warm_up: int = 1) -> Timings:
    """Time the steps alternately, each on the same batches, after `warm_up` rounds that are thrown away."""
    variants = [Variant(name, nullcontext, step) for name, step in steps.items()]
    alternate(variants, rounds=warm_up)
    return alternate(variants, rounds=rounds, first=warm_up)


def ratio(timings: Timings, slow: str, fast: str) -> dict[str, float]:
    """Return the ratio of two variants with its interval, rounded for reading."""
    found = timings.ratio(slow, fast)
    return {
        "value": round(found.value, 3),
        "low": round(found.low, 3),
        "high": round(found.high, 3),
        "pairs": found.pairs,
    }


def keep(name: str, args: argparse.Namespace, results: Any) -> dict[str, Any]:
    """Keep the result in `benchmarks/results/` with the machine beside it, and return it so."""
    document = _document(name, args, results)
    RESULTS.mkdir(exist_ok=True)
    write_text(RESULTS / f"{name}.json", json.dumps(document, indent=1) + "\n")
    return document


def report(name: str, args: argparse.Namespace, results: Any) -> None:
    """Print the result as the last line, and keep it where `--write` was given."""
    document = keep(name, args, results) if args.write else _document(name, args, results)
    sys.stdout.write(json.dumps(document) + "\n")


def _document(name: str, args: argparse.Namespace, results: Any) -> dict[str, Any]:
    return {"benchmark": name, "quick": args.quick, "machine": machine(), "results": results}
