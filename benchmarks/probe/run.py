"""What the probe costs: against an all-layer LoRA forward and backward, autograd example by example, and aletheia-lora.

    python benchmarks/probe/run.py [--quick] [--write]

aletheia-lora 0.1.2 is compared where it is installed (`pip install --no-deps aletheia-lora==0.1.2`).
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import Dataset

import layercard
from layercard.cost.memory import peak_bytes

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import LLAMA_TARGETS, arguments, compare, llama, ratio, report, token_batches


@dataclass(frozen=True)
class Shape:
    """A model and the batches it is probed on."""

    name: str
    layers: int
    hidden: int
    vocab: int
    rows: int = 4
    width: int = 64
    dtype: torch.dtype = torch.float32


SHAPES = (
    Shape("12 layers, hidden 768, vocabulary 400", 12, 768, 400),
    Shape("12 layers, hidden 768, vocabulary 50,257", 12, 768, 50_257),
    Shape("30 layers, hidden 576, vocabulary 400", 30, 576, 400),
    Shape("30 layers, hidden 576, vocabulary 49,152, bf16", 30, 576, 49_152, dtype=torch.bfloat16),
)
QUICK = (Shape("4 layers, hidden 96", 4, 96, 100, rows=4, width=24),)


def measure(shape: Shape, rounds: int) -> dict[str, Any]:
    """Return the ratios and peaks of one shape."""
    model = adapted(shape)
    batches = token_batches(rounds + 1, shape.rows, shape.width, shape.vocab)
    row: dict[str, Any] = {"shape": shape.name, "rows": shape.rows, "width": shape.width}
    for checkpointing in (False, True):
        step, probe = training_step(model, batches, checkpointing), probe_step(model, batches, checkpointing)
        timings = compare({"probe": probe, "step": step}, rounds=rounds)
        key = "checkpointing on" if checkpointing else "checkpointing off"
        peaks = {
            name: peak_bytes(lambda run=run: run(0), model, torch.device("cpu"))
            for name, run in (("probe", probe), ("step", step))
        }
        row[key] = {
            "probe over all-layer LoRA forward+backward": ratio(timings, "probe", "step"),
            "probe peak bytes over step peak bytes": round(peaks["probe"] / peaks["step"], 3),
        }
    row["other ways over probe"] = others(model, shape, batches, max(2, rounds // 2))
    return row


def adapted(shape: Shape) -> Any:
    """Return the shape's model with all-layer LoRA of rank 16."""
    model = llama(shape.layers, shape.hidden, vocab=shape.vocab, dtype=shape.dtype)
    return get_peft_model(model, LoraConfig(r=16, target_modules=LLAMA_TARGETS, task_type="CAUSAL_LM"))


def training_step(model: Any, batches: list[dict[str, Any]], checkpointing: bool) -> Callable[[int], None]:
    """Return one all-layer LoRA forward and backward, set up as Trainer and TRL set it up."""

    def step(number: int) -> None:
        model.train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        else:
            model.activation_checkpointing_disable()
        model(**batches[number]).loss.backward()
        model.zero_grad(set_to_none=True)

    return step


def probe_step(model: Any, batches: list[dict[str, Any]], checkpointing: bool) -> Callable[[int], None]:
    """Return the probe of one batch for `resnorm`."""
    return lambda number: void(
        layercard.probe(model, [batches[number]], checkpointing=checkpointing, show_progress=False)
    )


def void(_: object) -> None:
    """Drop a value."""


def others(model: Any, shape: Shape, batches: list[dict[str, Any]], rounds: int) -> dict[str, Any]:
    """Return how many times longer other ways take on the same examples."""
    model.activation_checkpointing_disable()
    steps = {"probe": probe_step(model, batches, False), "autograd": one_at_a_time(model, batches)}
    if importlib.util.find_spec("aletheia_lora") is not None:
        steps["aletheia"] = aletheia(shape, batches)
    timings = compare(steps, rounds=rounds)
    names = {"autograd": "autograd, one example at a time", "aletheia": "aletheia-lora 0.1.2"}
    return {label: ratio(timings, key, "probe") for key, label in names.items() if key in steps}


def one_at_a_time(model: Any, batches: list[dict[str, Any]]) -> Callable[[int], None]:
    """Return per-example norms of ∂L/∂B by autograd through the adapters, one example at a time."""

    def step(number: int) -> None:
        model.train()
        factors = [p for name, p in model.named_parameters() if "lora_B" in name]
        for row in range(batches[number]["input_ids"].shape[0]):
            loss = model(**{name: value[row : row + 1] for name, value in batches[number].items()}).loss
            torch.stack([g.norm() for g in torch.autograd.grad(loss, factors)])

    return step


def aletheia(shape: Shape, batches: list[dict[str, Any]]) -> Callable[[int], None]:
    """Return the probe of aletheia-lora 0.1.2 at its defaults over the same examples, on a model without adapters."""
    from aletheia_lora.probe import gradient_probe

    bare = llama(shape.layers, shape.hidden, vocab=shape.vocab, dtype=shape.dtype)
    return lambda number: void(
        gradient_probe(bare, Rows(batches[number]), num_layers=shape.layers, probe_batches=shape.rows)
    )


class Rows(Dataset[dict[str, Any]]):
    """The examples of a batch, one at a time."""

    def __init__(self, batch: dict[str, Any]) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return len(self.batch["input_ids"])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: value[index] for name, value in self.batch.items()}


def main() -> None:
    """Run every shape."""
    args = arguments(__doc__ or "").parse_args()
    torch.set_num_threads(args.threads)
    rounds = 2 if args.quick else 6
    rows = []
    for shape in QUICK if args.quick else SHAPES:
        rows.append(measure(shape, rounds))
        sys.stderr.write(f"{rows[-1]}\n")
    report("probe", args, rows)


if __name__ == "__main__":
    main()
