"""What adapters cost beside the layer that they sit on, by the model's width: the estimate of `plan` where nothing can be timed.

    python benchmarks/unit_costs/run.py [--quick] [--write]

Random Llama layers of several widths in the dtype that is fast here, as layercard's own `measure_unit_costs` times them. The
line is fitted in 1 / width: the arithmetic of an adapter and its reading and writing grow with the width, a layer's arithmetic
with the width's square.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from layercard.anatomy.layers import find_layers
from layercard.cost.unit_costs import measure_unit_costs
from layercard.precision import fast_dtype

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import LLAMA_TARGETS, arguments, llama, report, token_batches

WIDTHS, QUICK_WIDTHS = (576, 1024, 2048, 4096), (96, 192)
TOKENS, QUICK_TOKENS = (256, 1024), (32,)
RANKS = (8, 32)
TURNS = 5


def measured(width: int, tokens: int, rank: int, turns: int, dtype: torch.dtype) -> dict[str, Any]:
    """Return the costs of a layer's backward pass and of its adapters, in forward passes of the bare layer."""
    model = llama(2, width, dtype=dtype).train()
    (batch,) = token_batches(1, 1, tokens, 400)
    found = [
        measure_unit_costs(model, find_layers(model), batch, target_modules=LLAMA_TARGETS, rank=rank, rounds=3)
        for _ in range(turns)
    ]
    forward, backward = ([getattr(f, f"adapter_{part}") for f in found] for part in ("forward", "backward"))
    total = [a + b for a, b in zip(forward, backward, strict=True)]
    return {
        "width": width, "tokens": tokens, "rank": rank,
        "layer_backward": round(median(f.layer_backward for f in found), 3),
        "adapter_forward": round(median(forward), 3), "adapter_backward": round(median(backward), 3),
        "both": round(median(total), 3), "lowest": round(min(total), 3), "highest": round(max(total), 3),
    }  # fmt: skip


def fitted(rows: list[dict[str, Any]], part: str) -> dict[str, float]:
    """Return the least-squares line of a cost in 1 / width."""
    slope, rest = np.polyfit([1 / row["width"] for row in rows], [row[part] for row in rows], 1)
    return {"at infinite width": round(float(rest), 3), "times 1 / width": round(float(slope), 1)}


def main() -> None:
    """Measure every width, number of tokens and rank, and fit."""
    args = arguments(__doc__ or "").parse_args()
    torch.set_num_threads(args.threads)
    widths, tokens = (QUICK_WIDTHS, QUICK_TOKENS) if args.quick else (WIDTHS, TOKENS)
    dtype = fast_dtype("cpu", torch.bfloat16)
    rows = [
        measured(width, count, rank, 1 if args.quick else TURNS, dtype)
        for width in widths for count in tokens for rank in RANKS
    ]  # fmt: skip
    fits = {part: fitted(rows, part) for part in ("adapter_forward", "adapter_backward", "both")}
    report("unit_costs", args, {"dtype": str(dtype), "rows": rows, "fits": fits})


if __name__ == "__main__":
    main()
