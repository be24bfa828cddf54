"""Runs a script of the tests in several processes under the real torchrun, on CPU, and ends all of them after a time limit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node")


def torchrun(
    script: Path, *arguments: object, ranks: int = 2, seconds: float = 240
) -> subprocess.CompletedProcess[str]:
    """Run `script` on `ranks` processes; raise `TimeoutExpired`, with all of them ended, where it takes longer."""
    return timed([sys.executable, *TORCHRUN, str(ranks), str(script), *map(str, arguments)], seconds=seconds)


def timed(command: list[str], *, seconds: float) -> subprocess.CompletedProcess[str]:
    """Run `command` with whatever it starts in a session of its own, which is ended as a whole at the time limit."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    process = subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)
