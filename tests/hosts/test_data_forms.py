"""docs/data-forms.md, the plain Trainer's part: what datasets and collators give, with every task, placed and trained.

Each cell trains without layercard first, to know what the trainer itself takes; then `place` by `auto` (which looks at the
data) and by depth, both trained for two steps, and by a score.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers as hf
from kinds import KINDS, build
from torch.nn import functional as F
from transformers import Trainer

from adapted import lora_config, with_adapters
from brought import masked_tokenizer
from forms_table import BY_DEPTH, WORKS, check_section, reason, rows_of, section
from layercard import place
from layercard.errors import LayercardError
from tiny import tiny_model
from trainers import Rows, arguments

REFUSED = "transformers' Trainer does not train this model on such rows"
LABELS = 6


class Stream(torch.utils.data.IterableDataset):
    """Yields its rows anew each time."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)


class Once(Stream):
    """Yields its rows one time."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        super().__init__(rows)
        self.iterator = iter(rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.iterator


def tokens(i: int) -> list[int]:
    return [3 + (7 * i + 5 * j) % 90 for j in range(5 + i % 3)]


def with_labels(i: int) -> dict[str, Any]:
    ids = tokens(i)
    return {"input_ids": ids, "labels": [-100, *(token % LABELS for token in ids[1:])]}


def language(mlm: bool) -> Callable[[Any], Any]:
    return lambda model: hf.DataCollatorForLanguageModeling(masked_tokenizer(), mlm=mlm, mlm_probability=0.5)


def padded(model: Any) -> Any:
    return hf.DataCollatorWithPadding(masked_tokenizer())


def tagged(model: Any) -> Any:
    return hf.DataCollatorForTokenClassification(masked_tokenizer())


@dataclass(frozen=True)
class Given:
    """What one dataset row is, what collates rows, and what holds them."""

    row: Callable[[int], dict[str, Any]]
    collator: Callable[[Any], Any]
    holder: Callable[[list[dict[str, Any]]], Any] = datasets.Dataset.from_list


FORMS: dict[str, Given] = {
    "`text`, not tokenized": Given(lambda i: {"text": f"text {i}"}, padded),
    "`input_ids`, language modeling": Given(lambda i: {"input_ids": tokens(i)}, language(mlm=False)),
    "`input_ids`, masked language modeling": Given(lambda i: {"input_ids": tokens(i)}, language(mlm=True)),
    "`input_ids`, a label a token": Given(with_labels, tagged),
    "the same, padding-free": Given(with_labels, lambda model: hf.DataCollatorWithFlattening()),
    "the same, in a torch Dataset": Given(with_labels, tagged, Rows),
    "the same, streamed": Given(with_labels, tagged, Stream),
    "the same, streamed once": Given(with_labels, tagged, Once),
    "the same, every label masked": Given(
        lambda i: {"input_ids": tokens(i), "labels": [-100] * len(tokens(i))}, tagged
    ),
    "`input_ids`, target tokens": Given(
        lambda i: {"input_ids": tokens(i), "labels": tokens(i + 1)[:4]},
        lambda model: hf.DataCollatorForSeq2Seq(masked_tokenizer(), model=model),
    ),
    "`input_ids`, class number": Given(lambda i: {"input_ids": tokens(i), "labels": i % LABELS}, padded),
    "`input_ids`, fraction": Given(lambda i: {"input_ids": tokens(i), "labels": i / 4}, padded),
    "`input_ids`, several classes": Given(
        lambda i: {"input_ids": tokens(i), "labels": [float((i + j) % 2) for j in range(LABELS)]}, padded
    ),
    "several `input_ids`, the right choice": Given(
        lambda i: {"input_ids": [tokens(i), tokens(i + 1)], "labels": i % 2},
        lambda model: hf.DataCollatorForMultipleChoice(masked_tokenizer()),
    ),
    "`input_ids`, `start_positions`, `end_positions`": Given(
        lambda i: {"input_ids": tokens(i), "start_positions": i % 3, "end_positions": 4}, padded
    ),
}  # fmt: skip


def summed(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    logits = outputs["logits"][:, :-1].flatten(0, 1)
    return F.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum") / num_items_in_batch


class Contrastive(Trainer):
    """Compares the rows of a batch with each other; one row alone is an error."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        outputs = model(**inputs, output_hidden_states=True)
        hidden = outputs.hidden_states[-1].mean(1)
        if len(hidden) == 1:
            raise ValueError("one row has nothing to be compared with")
        loss = F.cross_entropy(hidden @ hidden.T, torch.arange(len(hidden)))
        return (loss, outputs) if return_outputs else loss


def llama() -> Any:
    return with_adapters(tiny_model("llama"), lora_config("llama"))


@dataclass(frozen=True)
class Task:
    """A model, and how its trainer is made."""

    model: Callable[[], Any]
    trainer: type = Trainer
    loss: Any = None
    settings: tuple[tuple[str, str], ...] = ()


def of_kind(name: str, **settings: str) -> Task:
    return Task(lambda: build(KINDS[name]), settings=tuple(settings.items()))


TASKS: dict[str, Task] = {
    "causal LM": of_kind("causal"),
    "masked LM": of_kind("masked"),
    "seq2seq": of_kind("T5 decoder", layers_path="decoder.block"),
    f"classifier of {LABELS}": of_kind("classification"),
    "multi-label": of_kind("multi-label"),
    "regression": of_kind("regression"),
    "token classification": of_kind("token classification"),
    "multiple choice": of_kind("multiple choice"),
    "question answering": of_kind("question answering"),
    "`compute_loss_func`": Task(llama, loss=summed),
    "a loss that compares rows": Task(llama, trainer=Contrastive),
}


def trainer_of(task: Task, given: Given, folder: Path) -> Any:
    model = task.model()
    args = arguments(
        folder, max_steps=2, per_device_train_batch_size=4, logging_steps=2, include_num_input_tokens_seen="no",
        remove_unused_columns=True,
    )  # fmt: skip
    return task.trainer(
        model=model, args=args, train_dataset=given.holder([given.row(i) for i in range(16)]),
        data_collator=given.collator(model), compute_loss_func=task.loss,
    )  # fmt: skip


def trains_alone(task: Task, given: Given, folder: Path) -> bool:
    """Whether the trainer takes such rows without layercard; labels that are broadcast are not taken, torch warns."""
    try:
        trainer_of(task, given, folder).train()
    except (ValueError, KeyError, TypeError, RuntimeError, IndexError, AttributeError, UserWarning):
        return False
    return True


def outcome(task: Task, given: Given, folder: Path) -> str:
    if not trains_alone(task, given, folder):
        return REFUSED
    settings = dict(task.settings)
    try:
        for lora_layers in ("auto", "last"):
            trainer = trainer_of(task, given, folder)
            run = place(trainer, lora_layers=lora_layers, probe_budget=0.5, **settings)
            trainer.train()
            assert trainer.state.global_step == 2
            assert len(run.layers) < len(run.stack), "fewer layers than all are trained"
    except LayercardError as error:
        return reason(str(error))
    try:
        place(trainer_of(task, given, folder), lora_layers="high", **settings)
    except LayercardError as error:
        return f"{BY_DEPTH}{reason(str(error))}"
    return WORKS


@pytest.fixture
def little_garbage() -> Iterator[None]:
    """accelerate collects garbage after every training, and most of its time goes over what pytest imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("little_garbage")
def test_the_table_says_what_the_plain_trainer_and_layercard_take(tmp_path: Path) -> None:
    outcomes = rows_of(list(FORMS))
    for form, given in FORMS.items():
        for name, task in TASKS.items():
            outcomes[form][name] = outcome(task, given, tmp_path)
    check_section("the plain Trainer", section("The plain Trainer", "dataset, collator", outcomes))
