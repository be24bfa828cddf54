"""The runs that the guard is judged by: SmolLM2-135M in TRL's `SFTTrainer` on three data sets, adapted in seven ways.

Whatever the placement, a run of one data set and learning rate has the same batches and the same initial adapter values.
The schedule is TRL's default, linear decay without warm-up, AdamW without weight decay; rank 16, alpha 32, no dropout,
every linear layer of a block a target. One core trains all of them in little more than an hour because examples are the
sets' shorter ones and batches small (`TASKS`), and because attention is eager, here the faster one at such lengths.
Losses are taken on the same held-out examples, each by itself, so that shares of gain kept have intervals.
"""

from __future__ import annotations

import copy
import json
import random
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from trl import SFTConfig, SFTTrainer

from layercard_trl.demo.model import demo_model

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from common import llama

from tiny import tiny_tokenizer

ROWS_FOR = 200
ALL_LAYERS = "all-layer"
LAYERS = 30


def _uniform(count: int, first: int) -> tuple[int, ...]:
    return tuple(first + int((i + 0.5) * (LAYERS - first) / count) for i in range(count))


PLACEMENTS: dict[str, tuple[int, ...]] = {
    ALL_LAYERS: tuple(range(LAYERS)),
    "last 5": tuple(range(25, 30)),
    "upper half": tuple(range(15, 30)),
    "uniform third, upper two thirds": _uniform(10, 10),
    "uniform third": _uniform(10, 0),
    "middle 5": tuple(range(12, 17)),
}


@dataclass(frozen=True)
class Task:
    """Examples of at most `max_tokens`, `batch` a step: some 170 tokens."""

    batch: int
    max_tokens: int


TASKS = {"e2e": Task(3, 64), "gsm8k": Task(2, 96), "arc_easy": Task(4, 56)}


@dataclass(frozen=True)
class Recipe:
    """What one run is: data, learning rate, optimizer steps, and how the rate moves."""

    data: str
    rate: float
    steps: int
    schedule: str = "linear"
    warmup: float = 0
    seed: int = 0


@dataclass(frozen=True)
class Lab:
    """What runs are made of: a model that trainers take copies of, its tokenizer, and prepared data."""

    model: Any
    tokenizer: Any
    prepared: Path
    """The folder that `prepare_data.py` wrote."""
    heldout: int = 64
    """How many held-out examples judge."""

    def examples(self, data: str, file: str, count: int) -> list[dict[str, str]]:
        """Return the first `count` prompts and completions of a prepared file that fit the task's `max_tokens`."""
        path, most = self.prepared / data / file, TASKS[data].max_tokens
        found: list[dict[str, str]] = []
        for line in path.read_text(encoding="utf-8").split("\n"):  # splitlines would end lines within texts too
            if not line:
                break
            row = json.loads(line)
            if len(self.tokenizer(row["prompt"] + row["completion"])["input_ids"]) < most:  # the end takes one more
                found.append({"prompt": row["prompt"], "completion": row["completion"]})
            if len(found) == count:
                return found
        raise ValueError(f"{path} has {len(found)} examples of at most {most} tokens; {count} are needed.")


def smollm2(prepared: Path) -> Lab:
    """Return SmolLM2-135M in bfloat16 with the prepared data."""
    path = demo_model(lambda _: None)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, attn_implementation="eager")
    return Lab(model, AutoTokenizer.from_pretrained(path), prepared)


def smoke(folder: Path) -> Lab:
    """Return a random model as deep, with a page of made-up rows: everything runs, numbers are of no worth."""
    rows = [{"prompt": f"{n} and {n} are", "completion": f" {2 * n}"} for n in range(10, 10 + ROWS_FOR * 4)]
    for data in TASKS:
        (folder / data).mkdir()
        for file in ("train.jsonl", "heldout.jsonl"):
            (folder / data / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Lab(llama(LAYERS, 48, dtype=torch.bfloat16), tiny_tokenizer(), folder, heldout=16)


def trainer(recipe: Recipe, lab: Lab, folder: str) -> SFTTrainer:
    """Return TRL's trainer with all-layer LoRA, not yet narrowed."""
    task = TASKS[recipe.data]
    config = SFTConfig(
        folder,
        use_cpu=True,
        bf16=True,
        max_steps=recipe.steps,
        learning_rate=recipe.rate,
        lr_scheduler_type=recipe.schedule,
        warmup_steps=recipe.warmup,
        per_device_train_batch_size=task.batch,
        per_device_eval_batch_size=16,
        activation_checkpointing=False,
        max_length=task.max_tokens,
        seed=recipe.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    torch.manual_seed(recipe.seed)  # adapters are initialised before the trainer sets its seed
    sft = SFTTrainer(
        copy.deepcopy(lab.model),
        config,
        train_dataset=Dataset.from_list(training_rows(recipe, lab)),
        eval_dataset=Dataset.from_list(lab.examples(recipe.data, "heldout.jsonl", lab.heldout)),
        processing_class=lab.tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    sft.remove_callback(PrinterCallback)
    return sft


def training_rows(recipe: Recipe, lab: Lab) -> list[dict[str, str]]:
    """Return the rows of a run of `ROWS_FOR` steps, no example twice; another seed is another order."""
    rows = lab.examples(recipe.data, "train.jsonl", ROWS_FOR * TASKS[recipe.data].batch)
    return random.Random(recipe.seed).sample(rows, len(rows))


def heldout_losses(sft: SFTTrainer) -> list[float]:
    """Return each held-out example's mean NLL over its completion tokens, in nats, in the order of the data set."""
    batches = sorted(range(len(sft.eval_dataset)), key=lambda i: len(sft.eval_dataset[i]["input_ids"]))
    losses = [0.0] * len(batches)
    model, was_training = sft.model, sft.model.training
    model.eval()
    for rows in _chunks(batches, 16):
        batch = sft.data_collator([sft.eval_dataset[i] for i in rows])
        with torch.no_grad(), sft.compute_loss_context_manager():
            for row, loss in zip(rows, _losses(model, batch), strict=True):
                losses[row] = round(float(loss), 5)
    model.train(was_training)
    return losses


def _losses(model: Any, batch: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """Return the mean NLL of each row; the head runs on the predicted positions alone."""
    inner = model.get_base_model()
    hidden = inner.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    targets = batch["labels"][:, 1:]
    rows, positions = (targets != -100).nonzero(as_tuple=True)
    logits = inner.lm_head(hidden[rows, positions]).float()
    nll = torch.nn.functional.cross_entropy(logits, targets[rows, positions], reduction="none")
    return [nll[rows == row].mean() for row in range(len(targets))]


def _chunks(items: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
