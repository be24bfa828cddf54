"""A model that every rank holds whole is probed as a copy in shards as it is probed alone, and is left as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launched import torchrun

SCRIPT = Path(__file__).with_name("copied_run.py")
MODELS = (
    "llama in bfloat16, adapters in float32", "gemma3, tied", "gpt2 without adapters, tied", "llama, dynamic positions",
    "t5, two stacks",
)  # fmt: skip
pytestmark = pytest.mark.xdist_group("torchrun")


def told(folder: Path, what: str) -> list[dict[str, Any]]:
    done = torchrun(SCRIPT, folder, what, seconds=150)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{what}-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return told(tmp_path_factory.mktemp("copied"), "copied")


@pytest.mark.parametrize("model", MODELS)
def test_a_copy_in_shards_gives_the_statistics_of_the_model(found: list[dict[str, Any]], model: str) -> None:
    for rank in found:
        alone, shards = dict(rank[model]["alone"]), rank[model]["shards"]
        assert shards["model"] == alone.pop("model")
        for name, values in alone.items():
            assert np.abs(values).max() > 0
            np.testing.assert_allclose(shards[name], values, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("model", MODELS)
def test_a_rank_holds_its_half_and_one_layer_at_a_time_and_lets_go(found: list[dict[str, Any]], model: str) -> None:
    shares = [rank[model]["shards"]["share"] for rank in found]
    assert sum(shares) == pytest.approx(1.0)
    assert max(shares) < 0.51
    assert [rank[model]["shards"]["whole layers at once"] for rank in found] == [1, 1]
    assert [rank[model]["gone"] for rank in found] == [True, True]


def test_a_copy_that_fails_on_one_rank_ends_the_others_with_its_message(tmp_path: Path) -> None:
    first, second = told(tmp_path, "failing")
    assert first["error"] == second["error"] == "ModelError"
    assert first["message"] == f"Rank 1: {second['message']}"
    assert "LlamaForCausalLM cannot be copied into shards for the probe (TypeError: " in second["message"]
