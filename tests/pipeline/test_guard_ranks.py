"""Two processes of a guarded run, under the real torchrun on CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trainers import equal

HERE = Path(__file__).parent
pytestmark = pytest.mark.xdist_group("torchrun")


def _run(folder, reaction):
    folder.mkdir()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    arguments = [str(HERE / "guard_ranks_run.py"), str(folder), reaction]
    done = subprocess.run(
        command + arguments, env=environment, capture_output=True, text=True, check=False, timeout=400
    )
    return done, [torch.load(path, weights_only=False) for path in sorted(folder.glob("rank*.pt"))]


def _trained(folder, reaction):
    done, ranks = _run(folder, reaction)
    assert done.returncode == 0, done.stderr[-3000:]
    assert equal(ranks[0]["values"], ranks[1]["values"])
    return done, ranks


def test_two_ranks_find_one_share_and_train_as_two_without_a_guard(tmp_path):
    done, guarded = _trained(tmp_path / "guarded", "warn")
    _, plain = _trained(tmp_path / "off", "off")
    assert equal(guarded[0]["values"], plain[0]["values"])
    assert guarded[0]["logs"] == plain[0]["logs"]
    first, second = ({k: v for k, v in each["quality"].items() if k != "seconds"} for each in guarded)
    assert first == second
    assert first["share_kept"] is not None
    assert first["forgetting"]["rows"] == 40
    assert None not in first["forgetting"]["rise"].values()
    assert done.stderr.count("Trial of") == 1


def test_two_ranks_try_a_schedule_as_one_and_train_as_two_without_a_guard(tmp_path):
    done, guarded = _trained(tmp_path / "guarded", "rising")
    _, plain = _trained(tmp_path / "off", "rising_off")
    assert equal(guarded[0]["values"], plain[0]["values"])
    assert guarded[0]["logs"] == plain[0]["logs"]
    first, second = ({k: v for k, v in each["quality"].items() if k != "seconds"} for each in guarded)
    assert first == second
    assert (first["kind"], first["share_kept"]) == ("tried", None)
    assert first["share_in_trial"] > 0
    assert done.stderr.count("Trial of") == 1


def test_all_layers_instead_train_as_two_ranks_without_layercard(tmp_path):
    _, guarded = _trained(tmp_path / "guarded", "all_layers")
    _, plain = _trained(tmp_path / "plain", "plain")
    assert guarded[0]["quality"]["reaction"] == "all_layers"
    assert equal(guarded[0]["values"], plain[0]["values"])
    assert guarded[0]["logs"] == plain[0]["logs"]


def test_every_rank_stops(tmp_path):
    done, ranks = _run(tmp_path / "run", "stop")
    assert done.returncode != 0
    assert ranks == []
    assert done.stderr.count("layercard.errors.QualityError: In a trial of") == 2
