"""One rank of a guarded run under torchrun. Arguments: the output directory, and `plain` or what to do on a loss.

`plain` trains all layers without layercard. Writes what it trained and logged to rank<r>.pt in the output directory.
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
    trainer = guarded_trainer(folder, ddp_find_unused_parameters=False, ddp_backend="gloo", stop_after=3)
    run = None
    if reaction in ("off", "warn"):
        trainer.processing_class, on = tiny_tokenizer(), reaction == "warn"
        control = "builtin" if on else None
        run = placed(trainer, (1, 3), guard=on, measure=on, guard_budget=0.15, control=control)
    elif reaction != "plain":
        run = placed(trainer, WRONG, guard=True, measure=False, on_quality_loss=reaction, guard_budget=0.15)
    train(trainer)
    values = {name.removeprefix("module."): value for name, value in trained(trainer.model).items()}
    told = {"values": values, "logs": logs(trainer), "quality": None if run is None else dict(run.report.quality)}
    torch.save(told, folder / f"rank{rank}.pt")
