"""One rank of runs in which one rank fails. Arguments: the output directory, and where they fail, one run after another.

Writes the error that this rank saw, or the layers it placed, to <where>/rank<r>.json in the output directory, and goes on.
Whoever waited for a rank that failed would not come to the end; whoever heard an answer to another question would fail.
"""

import json
import os
import sys
from pathlib import Path

from layercard import place
from tiny import collate
from trainers import long_trainer, train

RANK = int(os.environ["RANK"])


class Gone(Exception):
    """What layercard does not know and passes over nowhere."""


def gone(*args, **kwargs):
    raise Gone("the disk went away")


def broken(*args, **kwargs):
    raise RuntimeError("the disk went away")


def failing_collator(trainer):
    trainer.data_collator = gone if RANK == 1 else collate


def failing_forward(trainer, failure=gone):
    if RANK == 1:
        trainer.model.base_model.model.model.layers[2].register_forward_pre_hook(failure)


def failing_look(trainer):
    failing_forward(trainer, broken)


def failing_output(trainer):
    if RANK == 0:
        (Path(trainer.args.output_dir) / "placement.json").mkdir()


def run(folder, where):
    trainer = long_trainer(folder, ddp_backend="gloo")
    first = {"collator": failing_collator, "forward": failing_forward, "output": failing_output, "look": failing_look}
    first.get(where, lambda trainer: None)(trainer)
    layers = "auto" if where == "look" else "low" if where in first else [2, 3]
    placed = place(trainer, lora_layers=layers, guard=where == "trial", measure_budget=0.5)
    if where == "step":
        failing_forward(trainer)
    if where in ("timing", "trial"):
        failing_collator(trainer)
    if where in ("timing", "trial", "step"):
        train(trainer)
    return {"layers": placed.layers, "reason": placed.placement.reason}


if __name__ == "__main__":
    for where in sys.argv[2].split(","):
        folder = Path(sys.argv[1]) / where
        folder.mkdir(exist_ok=True)
        try:
            told = run(folder, where)
        except Exception as error:
            if where == "step":
                raise
            told = {"error": type(error).__name__, "message": str(error)}
        (folder / f"rank{RANK}.json").write_text(json.dumps(told))
