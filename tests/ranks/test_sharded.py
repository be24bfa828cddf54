"""A model that FSDP2 shards is probed on every rank as the whole one is on one; other ways of sharding are refused by name."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launched import timed, torchrun

SCRIPT = Path(__file__).with_name("sharded_run.py")
pytestmark = pytest.mark.xdist_group("torchrun")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("sharded")
    for done in (timed([sys.executable, str(SCRIPT), str(folder)], seconds=150), torchrun(SCRIPT, folder, "sharded")):
        assert done.returncode == 0, done.stderr[-3000:]
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def test_statistics_are_those_of_the_whole_model(told: dict[str, Any]) -> None:
    alone, first, second = (told[name]["scores"] for name in ("whole-0", "sharded-0", "sharded-1"))
    assert first == second
    assert alone.keys() == first.keys()
    for model, scores in alone.items():
        for name, values in scores.items():
            np.testing.assert_allclose(first[model][name], values, rtol=1e-5, err_msg=f"{name} of {model}")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("FSDP1", "wrapped by FSDP1"),
        ("tensor parallel", "split by tensor parallelism"),
        ("meta", "on the meta device"),
        ("other batches", "The ranks were given different batches to probe"),
        ("placed late", "call `place` before `fully_shard`"),
    ],
)
def test_what_cannot_be_probed_is_refused_by_name_on_every_rank(told: dict[str, Any], how: str, said: str) -> None:
    assert said in told["sharded-0"]["refusals"][how]
    assert said in told["sharded-1"]["refusals"][how]


def test_a_rank_that_fails_in_the_middle_of_a_sharded_pass_ends_the_run(tmp_path: Path) -> None:
    done = torchrun(SCRIPT, tmp_path, "failing", seconds=120)
    assert done.returncode != 0
    assert "the loss went away" in done.stderr
    assert not list(tmp_path.glob("*.json"))
