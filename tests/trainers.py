"""Plain trainers over tiny adapted models, and the same placed by layercard's stages or by hand."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from adapted import lora_config, with_adapters
from layercard.anatomy.checkpoint_names import NEW, current_name
from layercard.anatomy.layers import find_layers
from layercard.anatomy.narrow import narrow
from layercard.hosts.plain import PlainHost
from layercard.pipeline.during.callback import attach
from layercard.pipeline.during.control import control_of
from layercard.pipeline.placed_run import PlacedRun
from layercard.placement.placement import LayerPlacement
from layercard.settings import PlacementSettings
from tiny import collate, tiny_examples, tiny_model


class Rows(torch.utils.data.Dataset):
    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    values: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "per_device_train_batch_size": 2,
        "max_steps": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
        "include_num_input_tokens_seen": "all",
    }
    return TrainingArguments(**renamed(values | changes))


def renamed(values: dict[str, Any]) -> dict[str, Any]:
    """Return arguments under the names for checkpointing that the installed transformers takes; tests say the newest."""
    return {name.replace(NEW, current_name()): value for name, value in values.items()}


def make_trainer(
    folder: Path, *, family: str = "llama", layers: list[int] | None = None, kind: type = Trainer, **changes: Any
) -> Any:
    """Return a trainer over a tiny model with adapters on all layers, or by hand on `layers`, dropout on."""
    encoder = family in {"bert", "deberta", "modernbert"}
    lora = {"lora_dropout": 0.1}
    if layers is not None:
        lora |= {"layers_to_transform": layers}
    model = with_adapters(tiny_model(family), lora_config(family, **lora))
    args = arguments(folder, **changes)
    rows = Rows(tiny_examples(40, encoder=encoder))
    return kind(model=model, args=args, train_dataset=rows, data_collator=collate)


def placed(trainer: Any, layers: tuple[int, ...], **settings: Any) -> PlacedRun:
    """Place `trainer` on `layers` by the stages after choosing; without the guard unless `settings` ask for it."""
    host = PlainHost(trainer)
    stack = find_layers(host.model)
    placement = LayerPlacement(layers, len(stack), "indices", None, "given")
    wanted = PlacementSettings.from_user(list(layers), **({"guard": False} | settings))
    control = control_of(host, wanted.control)
    narrowing = narrow(host.model, stack, layers)
    run = PlacedRun(host, stack, placement, narrowing, wanted, probe_seconds=0.5, control=control)
    attach(run)
    return run


def trained(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def logs(trainer: Any) -> list[dict[str, Any]]:
    """The log history without what a clock decides."""
    return [
        {name: value for name, value in entry.items() if "_per_second" not in name and name != "train_runtime"}
        for entry in trainer.state.log_history
    ]


def train(trainer: Any, **arguments: Any) -> None:
    """Train from one random state, whatever ran before."""
    set_seed(11)
    trainer.train(**arguments)


class StopAfter(TrainerCallback):
    """Ends a run early whose planned length has to allow for timing."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= self.steps:
            control.should_training_stop = True


class FreezeBelow(TrainerCallback):
    """Sets `requires_grad` of the adapters below a layer when an optimizer step begins, and knows nothing of layercard.

    `at` holds the lowest layer that learns by the step from which it is so.
    """

    def __init__(self, at: dict[int, int]) -> None:
        self.at = at

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        below = max((layer for step, layer in self.at.items() if step <= state.global_step), default=0)
        for index, layer in enumerate(find_layers(model).layers):
            for name, parameter in layer.named_parameters():
                if "lora_" in name and index < below:
                    parameter.requires_grad_(False)
                    parameter.grad = None


class AtFirstStep(TrainerCallback):
    """Notes everything that training could see before its first step."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 0 and not hasattr(self, "seen"):
            self.seen = {
                "random": (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),
                "gradients": [name for name, p in model.named_parameters() if p.grad is not None],
                "modes": [(name, m.training) for name, m in model.named_modules()],
                "state": {k: v for k, v in vars(state).items() if k != "log_history"},
                "values": {k: v.clone() for k, v in model.state_dict().items()},
            }


LONG = 3000
"""Planned steps that pay for timing at the default budget even on a loaded machine, given `measure_budget=0.5`."""


def long_trainer(folder: Path, *, stop_after: int = 4, **changes: Any) -> Any:
    trainer = make_trainer(folder, **({"max_steps": LONG} | changes))
    trainer.add_callback(StopAfter(stop_after))
    return trainer
