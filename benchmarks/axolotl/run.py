"""The step time of `lora_layers` against Axolotl's own `peft_layers_to_transform` with the same layers, inside Axolotl.

    .venv-axolotl/bin/python benchmarks/axolotl/run.py [--quick] [--write]

A random Llama of 24 layers, the last 4 adapted, QLoRA, checkpointing on. Both trainers are built by Axolotl from a YAML
file and train at once in this process, one optimizer step in turn, from the same adapter values on the same batches: so
their times are pairs, and their losses have to agree. Seconds are processor time of the training thread.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import TrainerCallback

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from common import arguments, llama, ratio, report

from layercard.cost.timing import Timings
from tiny import tiny_tokenizer

LAYERS, ADAPTED = 24, [20, 21, 22, 23]
OWN, PLACED = "axolotl", "layercard"
KEYS: dict[str, dict[str, Any]] = {
    OWN: {"peft_layers_to_transform": ADAPTED},
    PLACED: {
        "plugins": ["layercard_axolotl.LayerCardPlugin"],
        "lora_layers": {"indices": ADAPTED, "measure": False, "guard": False},
    },
}


class InTurn(TrainerCallback):
    """Lets the trainers make one optimizer step each in turn, and times the step."""

    def __init__(self, names: list[str]) -> None:
        self.seconds: dict[str, list[float]] = {name: [] for name in names}
        self._order, self._turn = names, 0
        self._ready = threading.Condition()
        self._began = 0.0

    def of(self, name: str) -> TrainerCallback:
        """Return the callback of one trainer."""
        turns = self

        class Mine(TrainerCallback):
            def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                turns.begin(name)

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                turns.end(name)

        return Mine()

    def begin(self, name: str) -> None:
        """Wait for the turn of `name`."""
        with self._ready:
            self._ready.wait_for(lambda: self._order[self._turn % len(self._order)] == name)
        self._began = time.thread_time()

    def end(self, name: str) -> None:
        """Note the step and hand the turn on."""
        self.seconds[name].append(time.thread_time() - self._began)
        with self._ready:
            self._turn += 1
            self._ready.notify_all()


def configuration(folder: Path, name: str, steps: int, width: int) -> Path:
    """Write one trainer's YAML file."""
    kernels = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel")
    values = {
        "base_model": str(folder / "model"), "adapter": "qlora", "load_in_4bit": True, **dict.fromkeys(kernels, False),
        "lora_r": 8, "lora_alpha": 16, "lora_target_linear": True, "bf16": False, "attn_implementation": "sdpa",
        "datasets": [{"path": str(folder / "rows.jsonl"), "ds_type": "json", "type": "completion"}],
        "dataset_prepared_path": str(folder / "prepared"), "dataset_num_proc": 1, "dataloader_num_workers": 0,
        "dataloader_pin_memory": False, "sequence_len": width, "pad_to_sequence_len": True, "curriculum_sampling": True,
        "micro_batch_size": 2, "gradient_accumulation_steps": 1, "num_epochs": 1, "max_steps": steps,
        "gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "learning_rate": 0.001, "lr_scheduler": "constant", "optimizer": "adamw_torch", "logging_steps": 1,
        "save_strategy": "no", "seed": 1, "output_dir": str(folder / name), **KEYS[name],
    }  # fmt: skip
    path = folder / f"{name}.yml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def build(path: Path) -> Any:
    """Return the trainer that `axolotl train` would train."""
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets
    from axolotl.integrations.base import PluginManager
    from axolotl.train import setup_model_and_trainer

    cfg = load_cfg(str(path))
    data = PluginManager.get_instance().load_datasets(cfg, preprocess=False) if cfg.plugins else None
    return setup_model_and_trainer(cfg, data or load_datasets(cfg=cfg))[0]


def main() -> None:
    os.environ["AXOLOTL_DO_NOT_TRACK"] = "1"
    args = arguments(__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(args.threads)
    hidden, width, steps, warm_up = (96, 64, 6, 1) if args.quick else (768, 128, 22, 2)
    turns = InTurn([OWN, PLACED])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        llama(LAYERS, hidden).save_pretrained(folder / "model")
        tiny_tokenizer().save_pretrained(folder / "model")
        rows = [{"text": f"row {i} " + "abcdefghij "[i % 7 :] * width} for i in range(2 * steps + 4)]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        trainers = {name: build(configuration(folder, name, steps, width)) for name in KEYS}
        results = train(trainers, turns, warm_up)
    report("axolotl", args, {"hidden": hidden, "width": width, "layers": LAYERS, "adapted": ADAPTED, **results})


def train(trainers: dict[str, Any], turns: InTurn, warm_up: int) -> dict[str, Any]:
    """Train both at once, in turn; return their times and whether their losses agree."""
    values = {n: p.detach().clone() for n, p in trainers[OWN].model.named_parameters() if p.requires_grad}
    parameters = dict(trainers[PLACED].model.named_parameters())
    assert values.keys() == {n for n, p in parameters.items() if p.requires_grad}
    for name, value in values.items():
        parameters[name].data.copy_(value)
    threads = []
    for name, trainer in trainers.items():
        trainer.add_callback(turns.of(name))
        threads.append(threading.Thread(target=trainer.train, name=name))
        threads[-1].start()
    for thread in threads:
        thread.join()
    timings = Timings({name: tuple(seconds[warm_up:]) for name, seconds in turns.seconds.items()})
    losses = {name: [entry["loss"] for entry in t.state.log_history if "loss" in entry] for name, t in trainers.items()}
    return {
        "step_seconds": {name: round(timings.median(name), 3) for name in trainers},
        "speedup": ratio(timings, OWN, PLACED),
        "losses": losses[PLACED],
        "largest_difference_of_losses": max(abs(a - b) for a, b in zip(*losses.values(), strict=True)),
    }


if __name__ == "__main__":
    main()
