"""DeepSpeed on CPU, where it is installed (`make deepspeed`): ZeRO-2 is placed as in one process, ZeRO-3 refused by name."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launched import timed, torchrun

pytest.importorskip("trl")
pytest.importorskip("deepspeed")

HERE = Path(__file__).parent
pytestmark = pytest.mark.xdist_group("torchrun")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("deepspeed")
    os.environ["DS_ACCELERATOR"] = "cpu"
    alone = [sys.executable, str(HERE / "host_run.py"), str(folder), "sft"]
    script = HERE / "deepspeed_run.py"
    for done in (
        timed(alone, seconds=200),
        torchrun(script, folder, "zero2,zero3", seconds=500),
    ):  # it compiles at first
        assert done.returncode == 0, done.stderr[-3000:]
    paths = {f"{way} {rank}": folder / way / f"rank{rank}.json" for way in ("zero2", "zero3") for rank in (0, 1)}
    paths["alone"] = folder / "sft" / "rank0.json"
    return {name: json.loads(path.read_text()) for name, path in paths.items()}


def test_zero_2_places_as_one_process_and_ends_backpropagation_at_the_lowest_layer(told: dict[str, Any]) -> None:
    alone, first, second = told["alone"], told["zero2 0"], told["zero2 1"]
    assert first["layers"] == second["layers"] == alone["layers"] == first["backward"] == [2, 3]
    assert first["trained"] == second["trained"]
    for name, values in alone["statistics"].items():
        np.testing.assert_allclose(first["statistics"][name], values, rtol=1e-5, err_msg=name)
    assert "DeepSpeed shards" in first["unavailable"]["step_speedup"]


def test_zero_3_cannot_be_probed_and_trains_layers_that_are_named(told: dict[str, Any]) -> None:
    for rank in (0, 1):
        found = told[f"zero3 {rank}"]
        assert "is partitioned by DeepSpeed ZeRO-3" in found["partitioned"]
        assert "The run uses DeepSpeed ZeRO-3" in found["whole"]
        assert found["trained"] == [3712, 7424]
        assert found["moved"] is False
