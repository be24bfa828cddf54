"""A trainer over fresh adapters on a set of layers, as `place` would narrow them, without its measuring and its report."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from layercard.anatomy.adapters import check_narrowable
from layercard.anatomy.checkpoint_names import checkpointing_arguments
from layercard.anatomy.gradient_entry import GradientEntry, find_obstacle
from layercard.anatomy.layers import LayerStack
from layercard.anatomy.narrow import narrow
from layercard.anatomy.targets import find_targets
from layercard.anatomy.verify import verify_placement
from layercard.data import Task, Tokens, collate, pad_id
from layercard.errors import ModelError
from layercard.pipeline.before.looking import locate_layers
from layercard.random_state import random_state
from layercard.registry import Extensions
from layercard.study.settings import StudySettings

WARM_UP = 0.1
"""The share of the steps over which the learning rate rises."""
_TASKS: dict[Task, str] = {"causal": TaskType.CAUSAL_LM, "classification": TaskType.SEQ_CLS}


class Rows(torch.utils.data.Dataset[Mapping[str, Any]]):
    """Tokenized rows, or whole batches of them, in their order."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self._rows[index]


def adapted(
    base: nn.Module, task: Task, settings: StudySettings, seed: int, extensions: Extensions
) -> tuple[PeftModel, LayerStack]:
    """Return a copy of `base` with LoRA adapters on every layer; the same seed gives the same initial values."""
    return with_adapters(copy.deepcopy(base), task, settings, seed, extensions)


def with_adapters(
    bare: nn.Module,
    task: Task,
    settings: StudySettings,
    seed: int,
    extensions: Extensions,
    layers_path: str | None = None,
) -> tuple[PeftModel, LayerStack]:
    """Put LoRA adapters on every layer of `bare` itself, and return the PeftModel with its layers."""
    stack = locate_layers(bare, layers_path, extensions)
    names = sorted({target.name for target in find_targets(bare, stack, names=settings.target_modules)})
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, target_modules=names, task_type=_TASKS.get(task), lora_dropout=0.0
    )
    with random_state(seed):
        model = get_peft_model(bare, config)
    check_narrowable(model)
    return model, locate_layers(model, layers_path, extensions)


def make_trainer(
    model: PeftModel, rows: Sequence[Tokens], tokenizer: Any, settings: StudySettings, seed: int, folder: Path
) -> Trainer:
    """Return a plain trainer that goes through `rows` in their order."""
    pad = pad_id(tokenizer)
    return plain_trainer(model, Rows(rows), lambda r: collate(r, pad), settings, seed, folder)


def plain_trainer(
    model: PeftModel, rows: Rows, collator: Callable[[Any], Any], settings: StudySettings, seed: int, folder: Path
) -> Trainer:
    """Return a plain trainer that goes through `rows` in their order, on one device."""
    args = TrainingArguments(
        output_dir=str(folder),
        use_cpu=next(model.parameters()).device.type == "cpu",
        per_device_train_batch_size=settings.batch_size,
        max_steps=settings.steps,
        learning_rate=settings.learning_rate,
        warmup_steps=max(1, round(WARM_UP * settings.steps)),
        lr_scheduler_type="linear",
        **checkpointing_arguments(settings.gradient_checkpointing, {"use_reentrant": False}),
        train_sampling_strategy="sequential",
        seed=seed,
        report_to=[],
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    if args.n_gpu > 1:
        args._n_gpu = 1  # the model is on one; DataParallel would spread every batch over all
    trainer = Trainer(model=model, args=args, train_dataset=rows, data_collator=collator)
    trainer.remove_callback(PrinterCallback)
    return trainer


def entry_of(model: nn.Module, stack: LayerStack, layers: Sequence[int], args: Any) -> GradientEntry | None:
    """Return the moved gradient entry of a model narrowed to `layers`, or None where it cannot move."""
    lowest = min(layers)
    return None if find_obstacle(model, stack, lowest, args) else GradientEntry(model, stack, lowest)


class Entered(TrainerCallback):
    """Holds the gradient entry in force while a trainer trains, as a placed run does."""

    def __init__(self, model: PeftModel, stack: LayerStack, layers: Sequence[int]) -> None:
        self._model, self._stack, self._layers = model, stack, layers
        self._undo = ExitStack()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check that exactly these layers train, and move the entry."""
        verify_placement(self._model, self._stack, self._layers)
        entry = entry_of(self._model, self._stack, self._layers, args)
        if entry is not None:
            self._undo.enter_context(entry)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put the entry back."""
        self._undo.close()


@contextmanager
def narrowed(
    model: PeftModel, stack: LayerStack, layers: Sequence[int], shed_towers: Collection[str] = ()
) -> Iterator[None]:
    """Adapt only `layers` inside the block, and nothing in `shed_towers`."""
    if len(set(layers)) == len(stack) and not shed_towers:
        yield
        return
    narrowing = narrow(model, stack, layers, shed_towers=shed_towers)
    try:
        yield
    finally:
        narrowing.undo()


def freeze_adapters(model: PeftModel) -> None:
    """Train no adapter, and leave what else trains; fresh adapters add nothing to what the model computes."""
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.requires_grad_(False)


def refuse_without_adapters(task: Task) -> None:
    """Raise `ModelError` for models that a study cannot train."""
    if _TASKS.get(task) is None:
        what = "predicts masked tokens" if task == "masked" else f"is trained for {task}"
        raise ModelError(
            f"The model {what}, and cards are built for causal language models and sequence classifiers. Save it with such a "
            "head."
        )
