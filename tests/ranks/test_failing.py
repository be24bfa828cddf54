"""A rank that fails ends the others with its message, and none waits for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launched import torchrun

SCRIPT = Path(__file__).with_name("failing_run.py")
SECONDS = 150
"""Most of it is starting Python; torch.distributed itself would wait for 30 minutes."""
pytestmark = pytest.mark.xdist_group("torchrun")


def told(folder: Path, where: str) -> list[dict[str, Any]]:
    return [json.loads((folder / where / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def test_what_fails_on_one_rank_ends_both_with_its_message_and_leaves_them_in_step(tmp_path: Path) -> None:
    done = torchrun(SCRIPT, tmp_path, "collator,forward,trial,output,look", seconds=SECONDS)
    assert done.returncode == 0, done.stderr[-3000:]
    for where in ("collator", "forward", "trial"):
        first, second = told(tmp_path, where)
        assert second == {"error": "Gone", "message": "the disk went away"}
        assert first["error"] == "RankError"
        assert "Rank 1 of this run failed (Gone: the disk went away)" in first["message"]
        assert not (tmp_path / where / "report.json").exists()
        assert (tmp_path / where / "placement.json").exists() is (where == "trial")
    first, second = told(tmp_path, "output")
    assert first["error"] == "IsADirectoryError"
    assert "Rank 0 of this run failed (IsADirectoryError: " in second["message"]
    first, second = told(tmp_path, "look")  # no score decides there, so all ranks go by depth alike
    assert "error" not in first
    assert first == second


def test_a_rank_that_fails_in_the_middle_of_a_step_ends_the_run(tmp_path: Path) -> None:
    done = torchrun(SCRIPT, tmp_path, "step", seconds=SECONDS)
    assert done.returncode != 0
    assert "Gone: the disk went away" in done.stderr
