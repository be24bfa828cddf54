"""One rank of a guarded run under torchrun. Arguments: the output directory, and `plain` or what to do on a loss.

`plain` trains all layers without layercard, `rising` and `rising_off` with a schedule. Writes what it trained and logged to
rank<r>.pt in the output directory.
"""

import os
import sys
from pathlib import Path

import torch

from guarded import WRONG, guarded_trainer
from tiny import tiny_tokenizer
from trainers import logs, placed, train, trained

if __name__ == "__main__":
    folder, rank, reaction = Path(sys.argv[1]), int(os.environ["RANK"]), sys.argv[2]
    rising = reaction.startswith("rising")
    steps = {"max_steps": 48, "stop_after": 48} if rising else {"stop_after": 3}
    unused = None if rising else False
    trainer = guarded_trainer(folder, ddp_find_unused_parameters=unused, ddp_backend="gloo", **steps)
    run = None
    if rising:
        guarded = {"guard": reaction == "rising", "guard_budget": 0.5, "measure": False}
        run = placed(trainer, (0, 1, 2, 3), schedule="0.25:0.5, 0.5:0.75", **guarded)
    elif reaction in ("off", "warn"):
        trainer.processing_class, on = tiny_tokenizer(), reaction == "warn"
        control = "builtin" if on else None
        run = placed(trainer, (1, 3), guard=on, measure=on, guard_budget=0.15, control=control)
    elif reaction != "plain":
        run = placed(trainer, WRONG, guard=True, measure=False, on_quality_loss=reaction, guard_budget=0.15)
    train(trainer)
    values = {name.removeprefix("module."): value for name, value in trained(trainer.model).items()}
    told = {"values": values, "logs": logs(trainer), "quality": None if run is None else dict(run.report.quality)}
    torch.save(told, folder / f"rank{rank}.pt")
