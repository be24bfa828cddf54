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
    """What each rank wrote; what they said on standard error goes to `said` in the folder."""
    done = torchrun(SCRIPT, folder, what, seconds=150)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "said").write_text(done.stderr)
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


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("refused")
    first, second = told(folder, "refused")
    assert first == {how: said.replace(" Rank 0: ", " ") for how, said in second.items()}  # where a folder is named
    return first | {"said": (folder / "said").read_text()}


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("not by FSDP2", "this run trains it in 2 processes, and not by FSDP2, so there is nothing to shard it over"),
        ("no room", "not in shards either, of which a device needs "),
        ("4-bit", ".base_layer.weight` is of the class Params4bit: quantized weights are not cut into shards."),
    ],
)
def test_what_cannot_be_probed_in_shards_is_refused_by_name(refused: dict[str, str], how: str, said: str) -> None:
    assert refused[how].startswith("HostError: The unsharded model has ")
    assert said in refused[how]
    assert "layercard plan" in refused[how]


def test_a_look_that_no_score_needs_makes_no_copy(refused: dict[str, str]) -> None:
    assert refused["no score"] == "1,3"
    said = " ".join(refused["said"].split())
    assert said.count("without a look at the data, which no score needs here: The unsharded model has ") == 1
