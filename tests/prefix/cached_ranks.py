"""Run by torchrun in test_trainers: each rank trains with and without a cache of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent))

from test_trainers import plain, run

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    expected, _, _ = run(plain(folder, ddp_backend="gloo"), folder, cached=False)
    rank = dist.get_rank()
    cached, _, use = run(plain(folder, ddp_backend="gloo"), folder / f"rank{rank}", cached=True)
    assert use is not None
    found = {"expected": expected, "cached": cached, "hits": use.hits, "misses": use.misses}
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()
