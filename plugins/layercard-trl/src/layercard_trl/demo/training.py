"""One training of the demo: TRL's `SFTTrainer` with LoRA, on the layers asked for, from the same start each time.

The seed fixes the adapters' first values and the order of the batches, and there is no dropout; so runs differ by the
layers that they adapt, and by nothing else.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import torch
from peft import LoraConfig
from transformers import BitsAndBytesConfig, ProgressCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from layercard import place
from layercard.precision import name_of
from layercard_trl.demo.docstrings import Example

if TYPE_CHECKING:
    from layercard.pipeline.placed_run import PlacedRun

LEARNING_RATE = 5e-4
RANK, ALPHA = 16, 32


@dataclass(frozen=True)
class Recipe:
    """What the demo's trainings have in common."""

    model: Path
    train: Sequence[Example]
    heldout: Sequence[Example]
    steps: int
    batch_size: int
    dtype: torch.dtype
    """Of the base weights and of autocast: what this machine is fast in."""
    qlora: bool


@dataclass(frozen=True)
class TrainedRun:
    """What one training gave. Losses are mean NLL a token in nats; `loss_before` is the base model's."""

    loss_before: float
    loss_after: float
    step_seconds: float
    trainable_parameters: int
    placed: PlacedRun | None


def train(recipe: Recipe, output: Path, lora_layers: Any, loss_before: float | None = None) -> TrainedRun:
    """Train into the folder `output`; `lora_layers` as `layercard.place` takes it, None for every layer.

    `loss_before` is the base model's held-out loss where an earlier run took it. Both losses are taken after the training,
    the first with the adapters off: an evaluation before it would leave bitsandbytes' 4-bit weights on a CPU packed for
    inference, through which no gradient flows.
    Raises what `layercard.place` raises.
    """
    with _quiet_hosts():
        trainer = _trainer(recipe, output)
        clock = StepClock()
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(ProgressBar())
        trainer.add_callback(clock)
        placed = None if lora_layers is None else place(trainer, lora_layers=lora_layers)
        trainer.train()
        trainer.save_model()
        after = trainer.evaluate()["eval_loss"]
        if loss_before is None:
            with trainer.model.disable_adapter():
                loss_before = trainer.evaluate()["eval_loss"]
    trainable = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    return TrainedRun(loss_before, after, clock.median(), trainable, placed)


def _trainer(recipe: Recipe, output: Path) -> SFTTrainer:
    arguments = SFTConfig(
        output_dir=str(output),
        use_cpu=not torch.cuda.is_available(),
        bf16=recipe.dtype is torch.bfloat16,
        model_init_kwargs={"dtype": name_of(recipe.dtype)},
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=32,
        max_steps=recipe.steps,
        learning_rate=LEARNING_RATE,
        warmup_steps=0.1,
        prediction_loss_only=True,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=False,  # off by default where advice is kept quiet
    )
    return SFTTrainer(
        str(recipe.model),
        args=arguments,
        train_dataset=datasets.Dataset.from_list(list(recipe.train)),
        eval_dataset=datasets.Dataset.from_list(list(recipe.heldout)),
        quantization_config=_nf4(recipe.dtype) if recipe.qlora else None,
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
    )


def _nf4(dtype: torch.dtype) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


class StepClock(TrainerCallback):
    """Times the optimizer steps of the training itself, evaluation and layercard's own work left out."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._begun = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._begun = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock."""
        self.seconds.append(time.perf_counter() - self._begun)

    def median(self) -> float:
        """Return the median seconds of a step, the first one left out as warm-up."""
        return statistics.median(self.seconds[1:] or self.seconds)


class ProgressBar(ProgressCallback):
    """The trainer's progress bar without its log lines: the demo's table says what counts."""

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say nothing."""


@contextmanager
def _quiet_hosts() -> Iterator[None]:
    """Keep bars of data preparation, and the hosts' advice about what the demo chose on purpose, off the console."""
    from transformers.utils import logging

    verbosity, bars_shown = logging.get_verbosity(), not datasets.are_progress_bars_disabled()
    logging.set_verbosity_error()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars_shown:
            datasets.enable_progress_bars()
