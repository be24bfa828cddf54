"""What layercard adds to a run of 500 steps: probe, choosing, narrowing, timing, report.

    python benchmarks/overhead/run.py [--quick] [--write]

Real TRL `SFTTrainer` at its defaults (gradient checkpointing on), `lora_layers: auto`, everything else at layercard's
defaults. Added time is that of `place()` from call to return and of the callback inside `train()`, clocked from outside;
the run's time is that of `place()` and `train()` together.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

import layercard

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from common import LLAMA_TARGETS, arguments, llama, report

from tiny import tiny_tokenizer

EVENTS = ("on_train_begin", "on_step_begin", "on_step_end", "on_train_end")


class Clocked(TrainerCallback):
    """Another callback, with the seconds that its events take."""

    def __init__(self, inner: TrainerCallback) -> None:
        self.inner, self.seconds = inner, 0.0

    def __getattribute__(self, name: str) -> Any:
        if name not in EVENTS:
            return super().__getattribute__(name)
        event = getattr(self.inner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return event(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - began

        return timed


def trainer(folder: str, layers: int, hidden: int, steps: int, width: int) -> SFTTrainer:
    """Return TRL's trainer over random rows of full width."""
    generator = torch.Generator().manual_seed(0)
    rows = [{"input_ids": torch.randint(3, 99, (width,), generator=generator).tolist()} for _ in range(256)]
    config = SFTConfig(
        folder,
        use_cpu=True,
        bf16=False,
        max_steps=steps,
        per_device_train_batch_size=4,
        max_length=width,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=100,
    )
    return SFTTrainer(
        llama(layers, hidden, vocab=400),
        config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=16, target_modules=LLAMA_TARGETS, task_type="CAUSAL_LM"),
    )


def main() -> None:
    """Run once and account for every second that layercard took."""
    args = arguments(__doc__ or "").parse_args()
    torch.set_num_threads(args.threads)
    layers, hidden, steps, width = (4, 96, 30, 32) if args.quick else (12, 384, 500, 64)
    with tempfile.TemporaryDirectory() as folder:
        sft = trainer(folder, layers, hidden, steps, width)
        began = time.perf_counter()
        run = layercard.place(sft)
        placing = time.perf_counter() - began
        ours = next(c for c in sft.callback_handler.callbacks if type(c).__module__.startswith("layercard"))
        clocked = Clocked(ours)
        sft.callback_handler.callbacks[sft.callback_handler.callbacks.index(ours)] = clocked
        sft.train()
        total = time.perf_counter() - began
    added = placing + clocked.seconds
    result = {
        "layers": layers,
        "hidden": hidden,
        "steps": steps,
        "tokens a step": 4 * width,
        "share of the run's time": round(added / total, 4),
        "place()": round(placing / total, 4),
        "of which probe": round(run.probe_seconds / total, 4),
        "inside train()": round(clocked.seconds / total, 4),
        "step speedup": run.report.step_speedup,
        "end-to-end speedup": run.report.end_to_end_speedup,
    }
    report("overhead", args, result)


if __name__ == "__main__":
    main()
