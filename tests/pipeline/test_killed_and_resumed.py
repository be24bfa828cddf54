"""A placed run that is killed and resumed ends in the weights of one that was left alone, entry moved, prefix cached."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = """
import os, signal, sys
import torch
from transformers import TrainerCallback
from trainers import make_trainer, trained
import layercard

folder, kill_at, cache, resume = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4] == "resume"

class Killed(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

# 40 examples, two a step: an epoch is 20 steps, so examples come again before the kill
trainer = make_trainer(folder, max_steps=34, save_strategy="steps", save_steps=25, activation_checkpointing=True)
run = layercard.place(trainer, lora_layers=[2, 3], prefix_cache=cache)
trainer.add_callback(Killed())
trainer.train(resume_from_checkpoint=resume)
torch.save(trained(trainer.model), f"{folder}/weights.pt")
assert run.report.backward_layers == (2, 3), run.report.backward_layers
assert resume or cache == "off" or run.report.prefix_cache["hits"] > 0  # memory dies with the process
"""


def run(script: Path, folder: Path, kill_at: int, cache: str, mode: str) -> int:
    own = (str(Path(__file__).parents[1] / name) for name in ("", "probing"))
    paths = os.pathsep.join([*own, *sys.path])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(folder), str(kill_at), cache, mode]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr[-3000:]
    return done.returncode


@pytest.mark.parametrize("cache", ["off", "on"])
def test_a_killed_run_ends_where_an_uninterrupted_one_ends(tmp_path: Path, cache: str) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    assert run(script, alone, -1, cache, "fresh") == 0
    assert run(script, killed, 29, cache, "fresh") == -signal.SIGKILL
    assert not (killed / "weights.pt").exists()
    assert run(script, killed, -1, cache, "resume") == 0
    expected, found = (torch.load(folder / "weights.pt") for folder in (alone, killed))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=0 if cache == "off" else 1e-4, atol=0 if cache == "off" else 1e-6
        )
    assert not list(killed.glob("prefix_cache*"))
