"""One training of a study: a set of layers, a seed, the common budget; what the model reaches on held-out examples."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import set_seed

from layercard.cost.untouched import trainable_parameters
from layercard.data import Task
from layercard.random_state import random_state
from layercard.registry import Extensions
from layercard.study.adapting import Entered, adapted, freeze_adapters, make_trainer, narrowed
from layercard.study.evaluation import evaluate
from layercard.study.examples import HeldOut, training_rows
from layercard.study.generation import answers, text_metrics
from layercard.study.settings import StudyData, StudySettings


@dataclass(frozen=True)
class Subject:
    """What every run of a study shares: the base model, its tokenizer, its task, the data and the budget."""

    base: nn.Module
    tokenizer: Any
    task: Task
    data: StudyData
    settings: StudySettings
    heldout: Sequence[HeldOut]
    texts: Sequence[HeldOut]
    """The held-out examples that are answered in full."""
    extensions: Extensions


def train_arm(subject: Subject, layers: Sequence[int], seed: int) -> dict[str, Any]:
    """Return what training `layers` from `seed` reached: `metrics`, `train_loss`, `seconds`, `tokens` …

    Runs of one seed share initial values, examples and their order, so they differ by the layers alone. With no layers
    only what is trained beside adapters is: a classifier's head.
    """
    settings, task = subject.settings, subject.task
    rows = training_rows(
        subject.data, subject.tokenizer, task, settings, seed, tokenize=subject.extensions.tokenize_examples
    )
    with ExitStack() as undo:
        undo.enter_context(random_state(seed))
        folder = undo.enter_context(tempfile.TemporaryDirectory(prefix="layercard-study-"))
        model, stack = adapted(subject.base, task, settings, seed, subject.extensions)
        if layers:
            undo.enter_context(narrowed(model, stack, layers))
        else:
            freeze_adapters(model)
        trainer = make_trainer(model, rows, subject.tokenizer, settings, seed, Path(folder))
        if layers:
            trainer.add_callback(Entered(model, stack, layers))
        set_seed(seed)
        began = time.perf_counter()
        loss = trainer.train().training_loss
        seconds = time.perf_counter() - began
        return {
            "metrics": judge(model, subject),
            "train_loss": loss,
            "seconds": seconds,
            "trainable_parameters": trainable_parameters(model),
            "tokens": sum(len(row["input_ids"]) for row in rows),
        }


def judge(model: nn.Module, subject: Subject) -> dict[str, float]:
    """Return every metric of a model on the study's held-out examples."""
    settings = subject.settings
    metrics = evaluate(model, subject.heldout, subject.tokenizer, subject.task, batch_size=settings.eval_batch_size)
    if subject.texts:
        written = answers(
            model, subject.texts, subject.tokenizer,
            batch_size=settings.eval_batch_size, max_new_tokens=settings.max_new_tokens,
        )  # fmt: skip
        metrics |= text_metrics(written, [example.references for example in subject.texts])
    return metrics
