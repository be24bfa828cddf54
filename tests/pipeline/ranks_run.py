"""One rank of a run under torchrun. Arguments: the output directory and the layers of each rank, as `2,3/1,3`.

Writes what it trained and logged to rank<r>.pt in the output directory.
"""

import os
import sys
from pathlib import Path

import torch

from trainers import logs, long_trainer, placed, train, trained

if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    choices = [tuple(map(int, part.split(","))) for part in sys.argv[2].split("/")]
    trainer = long_trainer(folder, ddp_find_unused_parameters=False, ddp_backend="gloo")
    run = placed(trainer, choices[rank % len(choices)], measure=sys.argv[3] == "measure", measure_budget=0.5)
    train(trainer)
    values = {name.removeprefix("module."): value for name, value in trained(trainer.model).items()}
    told = {"values": values, "logs": logs(trainer), "pairs": run.report.pairs, "layers": run.report.backward_layers}
    torch.save(told, folder / f"rank{rank}.pt")
