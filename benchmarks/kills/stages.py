"""The five stages that are killed: each works in one folder, and does there what a user's second try would do."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import layercard
from layercard.cli.main import main as command
from layercard.errors import PlacementError
from layercard.pipeline.before.whole import is_whole
from layercard.pipeline.during.publishing import write_files
from reports import full_report
from studies import question_data
from tiny import tiny_model, tiny_tokenizer
from trainers import make_trainer

MODEL, DATA = "model", "data"
BUILD = [
    "--steps", "2", "--batch-size", "2", "--heldout-examples", "4", "--probe-examples", "4", "--probe-batch-size", "4",
    "--cost-rounds", "1", "--max-length", "48", "--seeds", "0", "--probe-seeds", "1", "--scores", "resnorm",
    "--dataset-id", "questions",
]  # fmt: skip
STEPS = 24
CLOCKED = ("cost", "seconds", "provenance", "date")
"""Keys of a card whose values a clock decides."""


@dataclass(frozen=True)
class Stage:
    """`work` does the stage in a folder; `result` is what it must come to there, however often it was killed before."""

    name: str
    work: Callable[[Path, Path], None]
    result: Callable[[Path], Any]


def material(folder: Path) -> None:
    """Write a tiny model, its tokenizer and data into `folder`."""
    tiny_model("llama", num_layers=4).save_pretrained(folder / MODEL)
    tiny_tokenizer().save_pretrained(folder / MODEL)
    (folder / DATA).mkdir()
    question_data(folder / DATA)


def _ran(*arguments: str) -> None:
    if command(list(arguments)) != 0:
        raise SystemExit(f"layercard {arguments[0]} failed")


def probe(shared: Path, folder: Path) -> None:
    """Probe the model and choose layers by what was seen."""
    data = str(shared / DATA / "train.jsonl")
    placement = str(folder / "placement.json")
    _ran(
        "plan", str(shared / MODEL), "--dataset", data, "--strategy", "high", "--probe-batch-size", "1", "-o", placement
    )


def card(shared: Path, folder: Path) -> None:
    """Build a Layer Card, from the parts that an earlier try finished."""
    files = ["--dataset", str(shared / DATA / "train.jsonl"), "--heldout", str(shared / DATA / "heldout.jsonl")]
    _ran("cards", "build", str(shared / MODEL), *files, "-o", str(folder / "card.json"), *BUILD)


def cache(_: Path, folder: Path) -> None:
    """Train two epochs with a prefix cache that keeps most of itself in files."""
    trainer = make_trainer(folder, max_steps=40, per_device_train_batch_size=40, gradient_checkpointing=False)
    rows = trainer.train_dataset.rows
    generator = random.Random(0)
    for number in range(800):  # 40 rows that repeat would be 40 entries
        tokens = [generator.randrange(3, 120) for _ in range(60)]
        rows.append({"input_ids": tokens, "labels": tokens} if number else rows.pop())
    layercard.place(trainer, lora_layers=[2, 3], prefix_cache="1KB", guard=False, measure=False)
    trainer.train()
    kept = json.loads((folder / "report.json").read_text())["prefix_cache"]
    if not kept["on"] or kept["hits"] == 0:
        raise SystemExit(f"the cache was not used: {kept}")
    torch.save(_adapters(trainer.model), folder / "weights.pt")


def train(_: Path, folder: Path) -> None:
    """Train with a checkpoint every second step; go on from the newest that is whole, as the error for a half one says."""
    resume = _newest_whole(folder)
    trainer = make_trainer(folder, max_steps=STEPS, save_strategy="steps", save_steps=2, resume_from_checkpoint=resume)
    layercard.place(trainer, lora_layers={"strategy": "high", "num_layers": 2}, guard=False)
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    torch.save(_adapters(trainer.model), folder / "weights.pt")


def _newest_whole(folder: Path) -> str | None:
    """Return the checkpoint to resume from; newer ones that layercard refuses are removed, as it says.

    So is that of the last step: resumed there, transformers trains a step more than was planned, without layercard too.
    """
    if is_whole(folder / f"checkpoint-{STEPS}"):
        shutil.rmtree(folder / f"checkpoint-{STEPS}")
    numbered = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    while numbered and not is_whole(numbered[-1]):
        newest = numbered.pop()
        trainer = make_trainer(folder, resume_from_checkpoint=str(newest))
        try:
            layercard.place(trainer, lora_layers=[2, 3])
        except PlacementError as error:
            if f"delete {newest}" not in str(error):
                raise
        else:
            raise SystemExit(f"{newest} is half of a checkpoint, and was not refused")
        shutil.rmtree(newest)
    return str(numbered[-1]) if numbered else None


def report(_: Path, folder: Path) -> None:
    """Write report.json and report.html over and over, as a run does that learns more."""
    for pairs in range(60):
        write_files(replace(full_report(), pairs=pairs), folder)


def _adapters(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "weights.pt", weights_only=True)


def _saved(folder: Path) -> dict[str, torch.Tensor]:
    return _weights(folder) | load_file(folder / "adapter_model.safetensors")


def _clockless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _clockless(held) for name, held in value.items() if name not in CLOCKED}
    return [_clockless(held) for held in value] if isinstance(value, list) else value


def _document(name: str) -> Callable[[Path], Any]:
    return lambda folder: _clockless(json.loads((folder / name).read_text()))


STAGES = {
    stage.name: stage
    for stage in (
        Stage("probe", probe, _document("placement.json")),
        Stage("card", card, _document("card.json")),
        Stage("cache", cache, _weights),
        Stage("train", train, _saved),
        Stage("report", report, _document("report.json")),
    )
}


def same(first: Any, second: Any) -> bool:
    """Whether two results agree: documents to the letter, weights as near as a cached prefix comes to a computed one."""
    if not isinstance(first, dict) or not all(isinstance(value, torch.Tensor) for value in first.values()):
        return bool(first == second)
    return first.keys() == second.keys() and all(
        torch.allclose(first[name], second[name], rtol=1e-4, atol=1e-6) for name in first
    )
