"""TRL's trainers on several ranks, launched by torchrun and by accelerate: placed alike, and as one process places."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launched import timed, torchrun

pytest.importorskip("trl")
pytest.importorskip("layercard_trl")

SCRIPT = Path(__file__).with_name("host_run.py")
ACCELERATE = (  # the flag that makes it start several processes; the trainer keeps them on the CPU
    *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
)
WRITTEN = {"placement.json", "report.json", "report.html"}
pytestmark = pytest.mark.xdist_group("torchrun")


def told(folder: Path, done: Any, host: str, ranks: int) -> list[dict[str, Any]]:
    """What each rank wrote; the same for all of them, and files of layercard from the first alone."""
    assert done.returncode == 0, done.stderr[-3000:]
    each = [json.loads((folder / host / f"rank{rank}.json").read_text()) for rank in range(ranks)]
    for other in each[1:]:
        assert other.keys() == each[0].keys()
        assert {k: v for k, v in other.items() if k != "unavailable"} == {
            k: v for k, v in each[0].items() if k != "unavailable"
        }
    assert each[0]["ranks"] == ranks
    assert {path.name for path in (folder / host / "out0").iterdir()} >= WRITTEN
    for rank in range(1, ranks):
        assert not {path.name for path in (folder / host / f"out{rank}").glob("*")} & WRITTEN
    return each


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("alone")
    done = timed([sys.executable, str(SCRIPT), str(folder), "sft,dpo"], seconds=200)
    return {host: told(folder, done, host, 1)[0] for host in ("sft", "dpo")}


def assert_placed_alike(one: dict[str, Any], many: dict[str, Any]) -> None:
    assert many["layers"] == one["layers"]
    assert many["examples"] == one["examples"]
    for name, values in one["statistics"].items():
        np.testing.assert_allclose(many["statistics"][name], values, rtol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def by_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, dict[str, Any]]]:
    """What the first of two and of four ranks wrote of each host, all others having written the same."""
    found = {}
    for ranks in (2, 4):
        folder = tmp_path_factory.mktemp(f"ranks{ranks}")
        done = torchrun(SCRIPT, folder, "sft,dpo", ranks=ranks, seconds=400)
        found[ranks] = {host: told(folder, done, host, ranks)[0] for host in ("sft", "dpo")}
    return found


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("host", ["sft", "dpo"])
def test_ranks_under_torchrun_place_and_time_as_one_process_does(
    alone: dict[str, dict[str, Any]], by_ranks: dict[int, dict[str, dict[str, Any]]], host: str, ranks: int
) -> None:
    first = by_ranks[ranks][host]
    assert_placed_alike(alone[host], first)
    assert first["pairs"] > 0
    assert first["backward"] == list(range(min(first["layers"]), 4))


def test_accelerate_launches_the_same(alone: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    done = timed([sys.executable, *ACCELERATE, str(SCRIPT), str(tmp_path), "sft"], seconds=300)
    assert_placed_alike(alone["sft"], told(tmp_path, done, "sft", 2)[0])
    assert done.stderr.count("Adapts layers") == 1


def test_fsdp2_shards_what_was_placed_and_trains_what_ddp_trains(
    alone: dict[str, dict[str, Any]], by_ranks: dict[int, dict[str, dict[str, Any]]], tmp_path: Path
) -> None:
    ddp = by_ranks[2]["sft"]
    fsdp = told(tmp_path, torchrun(SCRIPT, tmp_path, "sft", "fsdp2", seconds=300), "sft", 2)[0]
    assert_placed_alike(alone["sft"], fsdp)
    assert (ddp["sharded"], fsdp["sharded"]) == (False, True)
    assert "FSDP shards" in fsdp["unavailable"]["step_speedup"]
    assert fsdp["backward"] == ddp["backward"] == fsdp["layers"]
    np.testing.assert_allclose(fsdp["losses"], ddp["losses"], rtol=1e-4)
    for name, values in ddp["trained"].items():
        np.testing.assert_allclose(fsdp["trained"][name], values, atol=1e-5, err_msg=name)


def test_a_model_that_one_device_cannot_hold_is_probed_in_shards_and_trains(tmp_path: Path) -> None:
    folders = [tmp_path / way for way in ("deep", "shards")]
    for folder in folders:
        folder.mkdir()
    done = timed([sys.executable, str(SCRIPT), str(folders[0]), "sft", "deep"], seconds=200)
    alone = told(folders[0], done, "sft", 1)[0]
    done = torchrun(SCRIPT, folders[1], "sft", "shards", seconds=300)
    shards = told(folders[1], done, "sft", 2)[0]
    assert_placed_alike(alone, shards)
    assert shards["sharded"]
    assert shards["untouched"]
    assert len(shards["losses"]) == 3
    assert shards["trained"].keys() == alone["trained"].keys()
    said = " ".join(done.stderr.split())
    assert "Note: probed in shards over 2 ranks, each of which ran every example. The unsharded model has " in said


def test_a_rank_that_fails_in_the_middle_of_a_copy_s_pass_ends_the_run(tmp_path: Path) -> None:
    done = torchrun(SCRIPT, tmp_path, "sft", "broken", seconds=200)
    assert done.returncode != 0
    assert "the layer went away" in done.stderr
    assert not list(tmp_path.rglob("placement.json"))
