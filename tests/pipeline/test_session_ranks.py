"""Two processes of one run, under the real torchrun on CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from layercard.report.files import load_report
from trainers import equal

HERE = Path(__file__).parent
pytestmark = pytest.mark.xdist_group("torchrun")


def _torchrun(folder, *arguments, script="ranks_run.py"):
    folder.mkdir()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.run(
        [*command, str(HERE / script), str(folder), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_two_ranks_measure_alike_and_train_as_two_that_do_not_measure(tmp_path):
    values = []
    for measure in ("measure", "silent"):
        done = _torchrun(tmp_path / measure, "2,3", measure)
        assert done.returncode == 0, done.stderr[-3000:]
        ranks = [torch.load(tmp_path / measure / f"rank{r}.pt", weights_only=False) for r in (0, 1)]
        assert equal(ranks[0]["values"], ranks[1]["values"])
        assert ranks[0]["pairs"] == ranks[1]["pairs"]
        assert (ranks[0]["pairs"] > 0) is (measure == "measure")
        assert ranks[0]["layers"] == ranks[1]["layers"] == (2, 3)
        assert not load_report(tmp_path / measure / "report.json").partial
        assert done.stdout.count("Adapted: layers") == 1
        values.append(ranks[0])
    assert equal(values[0]["values"], values[1]["values"])
    assert values[0]["logs"] == values[1]["logs"]


def test_ranks_that_placed_differently_all_end(tmp_path):
    done = _torchrun(tmp_path / "run", "2,3/1,3", "measure")
    assert done.returncode != 0
    assert done.stderr.count("layercard.errors.PlacementError: The processes of this run placed different layers") == 2
    assert "rank 0: layers 2–3 of 0–3; rank 1: layers 1, 3 of 0–3" in done.stderr
    assert not (tmp_path / "run" / "report.json").exists()


def test_ranks_stop_the_same_layers_on_the_way_as_by_hand_and_none_waits(tmp_path):
    values = []
    for way in ("placed", "by_hand"):
        done = _torchrun(tmp_path / way, way, script="rising_ranks_run.py")
        assert done.returncode == 0, done.stderr[-3000:]
        ranks = [torch.load(tmp_path / way / f"rank{r}.pt", weights_only=False) for r in (0, 1)]
        assert equal(ranks[0], ranks[1])
        values.append(ranks[0])
    assert equal(values[0], values[1])
    phases = load_report(tmp_path / "placed" / "report.json").schedule
    assert [phase["layers"] for phase in phases] == [[0, 1, 2, 3], [2, 3]]


def test_ranks_roll_their_caches_forward_each_its_own(tmp_path):
    values = []
    for cache in ("off", "1MiB"):
        done = _torchrun(tmp_path / cache, cache, script="rising_ranks_run.py")
        assert done.returncode == 0, done.stderr[-3000:]
        ranks = [torch.load(tmp_path / cache / f"rank{r}.pt", weights_only=False) for r in (0, 1)]
        assert equal(ranks[0], ranks[1])
        values.append(ranks[0])
    assert max(float((values[1][n] - w).norm() / w.norm()) for n, w in values[0].items()) < 1e-4
    use = load_report(tmp_path / "1MiB" / "report.json").prefix_cache
    assert (use["off"], use["bypassed"]) == (None, {})
    assert use["rolled"] > 0  # shuffling moves examples between ranks, so that some are new to each
    assert use["hits"] + use["rolled"] + use["misses"] == 20
    assert not list((tmp_path / "1MiB").glob("prefix_cache*"))
