"""What `layercard doctor` says of TRL: a real `SFTTrainer` over the toy, placed and trained for a few steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layercard.doctor import toy
from layercard.doctor.check import Check, failed
from layercard_trl.host import SFTHost

if TYPE_CHECKING:
    from layercard.pipeline.placed_run import PlacedRun

NAME = "TRL run"


def check_sft(folder: Path, place: Callable[..., PlacedRun]) -> Check:
    """Return whether this plugin answered for TRL's `SFTTrainer`, and whether the placed layers alone learned."""
    run = toy.trained(lambda: toy_trainer(folder), place, measure=False)
    if type(run.host) is not SFTHost:
        return failed(
            NAME,
            f"{type(run.host).__module__}.{type(run.host).__name__} answered for SFTTrainer",
            "Another plugin answers first; uninstall it to probe and judge by TRL's own loss.",
        )
    return toy.check_host(NAME, run)


def toy_trainer(folder: Path) -> Any:
    """Return an `SFTTrainer` over the toy with rows that are tokenized already."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    arguments = SFTConfig(
        output_dir=str(folder),
        max_steps=toy.PLANNED,
        per_device_train_batch_size=toy.BATCH,
        learning_rate=1e-2,
        max_length=None,
        bf16=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    return SFTTrainer(
        toy.adapted_model(),
        args=arguments,
        train_dataset=Dataset.from_list(toy.rows()),
        processing_class=toy.tokenizer(),
    )
