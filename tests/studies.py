"""What tests of the study share: a tiny saved model, data with choices and references, settings that take a second."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from layercard import plugins
from layercard.data import Task
from layercard.study.examples import heldout_examples
from layercard.study.generation import with_references
from layercard.study.settings import StudyData, StudySettings
from layercard.study.training import Subject
from tiny import tiny_model, tiny_tokenizer

WORDS = ("red", "green", "blue", "grey", "pink")
BRIEF = StudySettings(
    steps=3,
    batch_size=2,
    max_length=48,
    heldout_examples=6,
    eval_batch_size=2,
    probe_examples=8,
    probe_batch_size=4,
    cost_rounds=1,
    rank=4,
    alpha=8,
    probe_ranks=(1, 4),
    learning_rate=1e-2,
)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows(count: int, seed: int, *, heldout: bool = False) -> list[dict[str, Any]]:
    """Questions whose answer is one of three words; held-out ones say which, and how else it could be put."""
    generator = random.Random(seed)
    made = []
    for _ in range(count):
        choices = [f" {word}" for word in generator.sample(WORDS, 3)]
        label = generator.randrange(3)
        number = generator.randrange(100, 10_000)
        row: dict[str, Any] = {"prompt": f"Q{number}:", "completion": choices[label]}
        if heldout:
            row |= {"choices": choices, "label": label, "references": [choices[label].strip(), "so be it"]}
        made.append(row)
    return made


def question_data(folder: Path) -> StudyData:
    train = write_rows(folder / "train.jsonl", rows(40, 1))
    heldout = write_rows(folder / "heldout.jsonl", rows(20, 2, heldout=True))
    return StudyData(train, heldout, "questions")


def label_data(folder: Path) -> StudyData:
    made = [{"text": f"{WORDS[i % 5]} {i}", "label": i % 3} for i in range(40)]
    return StudyData(
        write_rows(folder / "train.jsonl", made[:30]), write_rows(folder / "heldout.jsonl", made[30:]), "labels"
    )


def subject(folder: Path, *, family: str = "llama", num_layers: int = 6, settings: StudySettings = BRIEF) -> Subject:
    task: Task = "classification" if family == "bert" else "causal"
    data = label_data(folder) if task == "classification" else question_data(folder)
    tokenizer = tiny_tokenizer()
    heldout = heldout_examples(data, tokenizer, task, settings)
    texts = with_references(heldout, settings.generate)
    base = tiny_model(family, num_layers=num_layers)
    return Subject(base, tokenizer, task, data, settings, heldout, texts, plugins.extensions())
