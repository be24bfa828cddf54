"""One rank of a run with a schedule under torchrun. Arguments: the output directory, and `placed` or `by_hand`.

`off` and `1MiB` are runs of two epochs that begin at layer 1, with this prefix cache.
Writes its adapters to rank<r>.pt in the output directory.
"""

import os
import sys
from pathlib import Path

import torch
from transformers import TrainerCallback

from layercard import place
from layercard.anatomy.layers import find_layers
from trainers import make_trainer, train


class FreezeByHand(TrainerCallback):
    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 2:
            for name, parameter in model.named_parameters():
                if "lora_" in name and find_layers(model).layer_of(name) in (0, 1):
                    parameter.requires_grad_(False)
                    parameter.grad = None


if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    cache = sys.argv[2] if sys.argv[2] in ("off", "1MiB") else None
    changes = {"max_steps": 5, "gradient_accumulation_steps": 2} if cache is None else {"max_steps": 20}
    trainer = make_trainer(folder, ddp_backend="gloo", **changes)
    if cache is not None:
        for module in trainer.model.modules():
            if hasattr(module, "lora_dropout"):
                module.lora_dropout["default"].p = 0.0
        run = place(trainer, lora_layers=[1, 2, 3], schedule="0.5:0.34", prefix_cache=cache, measure=False)
    elif sys.argv[2] == "placed":
        run = place(trainer, schedule="0.4:0.5")
    else:
        trainer.add_callback(FreezeByHand())
    train(trainer)
    values = {
        n.removeprefix("module."): p.detach().clone() for n, p in trainer.model.named_parameters() if "lora_" in n
    }
    torch.save(values, folder / f"rank{rank}.pt")
