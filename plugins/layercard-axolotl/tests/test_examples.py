"""The script that counts which of Axolotl's examples take the key."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml
from runs import ENVIRONMENT

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "axolotl" / "examples.py"
FILES = {
    "expression.yml": {"adapter": "lora", "lora_target_modules": r"model.layers.[\d]+.self_attn.q_proj"},
    "kernels off.yaml": {"adapter": "qlora", "lora_qkv_kernel": False},
    "one rank.yml": {"adapter": "qlora", "fsdp_config": {"cpu_ram_efficient_loading": True}},
    "below/ebft.yml": {"adapter": "lora", "rl": "ebft"},
    "full.yml": {"learning_rate": 1},
}


def test_every_lora_file_is_accepted_or_refused_with_its_reason(tmp_path):
    for name, values in FILES.items():
        path = tmp_path / "examples" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump({"base_model": "some/model", **values}))
    done = subprocess.run(
        [sys.executable, SCRIPT, "--examples", tmp_path / "examples"],
        env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    results = json.loads(done.stdout.strip().splitlines()[-1])["results"]
    assert results["files"] == 4
    assert results["accepted"] == {
        "before the adapter, fused kernels on": 1,
        "after the adapter is built": 1,
        "by depth, weights on the first rank alone": 1,
    }
    assert list(results["refused"].values()) == [["below/ebft.yml"]]
    assert "`rl` is 'ebft'" in next(iter(results["refused"]))
