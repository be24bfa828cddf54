"""`write_text`: whole or not at all, and what a killed process left is cleared away, but nothing that is still written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from layercard import files
from layercard.errors import PlacementError
from layercard.pipeline.before.whole import check_whole

KILLED = """
import os, signal, sys
from pathlib import Path
from layercard import files
os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)
files.write_text(Path(sys.argv[1]), "new")
"""


def killed_while_writing(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], env={**os.environ}, timeout=120)
    assert done.returncode == -signal.SIGKILL


def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    killed_while_writing(path)
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    files.write_text(path, "newer")
    assert path.read_text() == "newer"
    assert list(tmp_path.iterdir()) == [path]


def left(folder: Path, machine: str, pid: int, age: float) -> Path:
    path = folder / f".{machine}-{pid}-abc{files.TEMPORARY}"
    path.write_text("half")
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def test_what_another_process_is_writing_stays(tmp_path: Path) -> None:
    ours = files._machine()
    living = [left(tmp_path, ours, os.getppid(), 0.0), left(tmp_path, "00000000", 1, 60.0)]
    dead = [left(tmp_path, "00000001", 1, 2 * files.FORGOTTEN), left(tmp_path, ours, os.getpid(), 10 * files.FORGOTTEN)]
    files.remove_left_over(tmp_path)
    assert all(path.exists() for path in living)
    assert not any(path.exists() for path in dead)  # the last one's process number was given away again


@pytest.mark.parametrize("state", [None, '{"global_step": 4, '])
def test_half_a_checkpoint_is_refused_with_the_way_out(tmp_path: Path, state: str | None) -> None:
    half, whole = tmp_path / "checkpoint-10", tmp_path / "checkpoint-9"
    half.mkdir()
    if state is not None:
        (half / "trainer_state.json").write_text(state)
    with pytest.raises(PlacementError, match="start without `resume_from_checkpoint`"):
        check_whole(half)
    whole.mkdir()
    (whole / "trainer_state.json").write_text('{"global_step": 9}')
    with pytest.raises(PlacementError, match=r"Resume from .*checkpoint-9 "):
        check_whole(half)
    check_whole(whole)
    check_whole(tmp_path / "elsewhere")
    check_whole(None)
