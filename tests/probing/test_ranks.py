"""Two ranks under torchrun hold the same scores as one process, to rounding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

SCRIPT = """
import json, sys
import torch.distributed as dist
from tiny import collate, tiny_examples, tiny_model
import layercard
from layercard.pipeline.probe import score

names = ["resnorm", "resnorm_algorithm1", "cka", "activation", "effective_rank", "set_gain"]
if sys.argv[2] == "two":
    dist.init_process_group("gloo")
batches = [collate(tiny_examples(4, seed=i)) for i in range(3)]
statistics = layercard.probe(tiny_model("llama"), batches, scores=names)
rank = dist.get_rank() if dist.is_initialized() else 0
with open(f"{sys.argv[1]}.{rank}", "w") as file:
    json.dump({n: score(statistics, n).raw.tolist() for n in names} | {"examples": statistics.examples}, file)
if dist.is_initialized():
    dist.destroy_process_group()
"""


def test_two_ranks_equal_one(tmp_path: Path) -> None:
    script = tmp_path / "probe.py"
    script.write_text(SCRIPT)
    environment = {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]),
        "PATH": "",
        "OMP_NUM_THREADS": "1",
        "HOME": str(tmp_path),
    }
    one = [sys.executable, str(script), str(tmp_path / "one"), "one"]
    two = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"]
    two += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", str(script), str(tmp_path / "two"), "two"]
    for command in (one, two):
        subprocess.run(command, check=True, env=environment, capture_output=True, timeout=300)
    alone, first, second = (json.loads((tmp_path / name).read_text()) for name in ("one.0", "two.0", "two.1"))
    assert first == second
    assert first["examples"] == alone["examples"] == 12
    for name, values in alone.items():
        np.testing.assert_allclose(first[name], values, rtol=1e-5)
