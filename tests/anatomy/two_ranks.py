"""Run by torchrun in test_gradient_entry: each rank trains with and without the entry."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent))

from test_gradient_entry import CHECKPOINTING, trained

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    changes = CHECKPOINTING["non-reentrant"] | {"max_steps": 4, "ddp_backend": "gloo"}
    without, everywhere = trained("llama", folder, None, **changes)
    moved, backward = trained("llama", folder, 2, **changes)
    assert dist.get_world_size() == 2
    found = {"without": without, "moved": moved, "everywhere": everywhere, "backward": backward}
    torch.save(found, folder / f"rank{dist.get_rank()}.pt")
    dist.destroy_process_group()
