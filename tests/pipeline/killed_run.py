"""A placed run that kills its own process, hard, in its second step. Argument: the output directory."""

import os
import signal
import sys
from pathlib import Path

from transformers import TrainerCallback

from trainers import long_trainer, placed


class Kill(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    trainer = long_trainer(Path(sys.argv[1]))
    placed(trainer, (2, 3), measure_budget=0.5)
    trainer.add_callback(Kill)
    trainer.train()
