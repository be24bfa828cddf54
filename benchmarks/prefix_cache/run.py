"""Three epochs of training with the prefix cache, filling it included, and what a batch costs whose rows are partly cached.

    python benchmarks/prefix_cache/run.py [--quick] [--write]

Epochs: whole runs of real TRL `SFTTrainer.train()` at its defaults, optimizer included, in turns within one process:
all-layer LoRA, the last 5 of 30 layers by `layercard.place`, the same with the cache in memory, and with all of it on disk.
Rows: forward and backward of one batch of 8 rows of which 0, 2, 4, 6 or 8 are cached, against the same batch without a
cache. The ceiling beside each ratio counts layer passes alone.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from trl import SFTConfig, SFTTrainer

import layercard
from layercard.anatomy.gradient_entry import GradientEntry
from layercard.anatomy.layers import find_layers
from layercard.cost.timing import Variant, alternate
from layercard.cost.untouched import clear_gradients
from layercard.prefix.cache import PrefixCache

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from common import LLAMA_TARGETS, arguments, llama, ratio, report

from tiny import tiny_tokenizer

SETTINGS: dict[str, dict[str, Any] | None] = {
    "all-layer": None,
    "entry": {},
    "cache in memory": {"prefix_cache": "1GiB"},
    "cache on disk": {"prefix_cache": "1B"},
}
EPOCHS = 3


@dataclass(frozen=True)
class Shape:
    """The model, the data, and how often everything is run."""

    layers: int = 30
    hidden: int = 288
    adapted: int = 5
    rows: int = 32
    width: int = 64
    rounds: int = 3

    @property
    def entry(self) -> int:
        """The lowest adapted layer."""
        return self.layers - self.adapted


def epochs(shape: Shape) -> dict[str, Any]:
    """Return how much faster three whole epochs are than all-layer LoRA's, and what each cache held."""
    seconds: dict[str, list[float]] = {name: [] for name in SETTINGS}
    held: dict[str, Any] = {}
    for number in range(1 + shape.rounds):
        names = list(SETTINGS) if number % 2 == 0 else list(reversed(SETTINGS))
        for name in names:
            taken, use = _train(shape, SETTINGS[name])
            held[name] = use
            if number > 0:  # the first round warms up
                seconds[name].append(taken)
        sys.stderr.write(f"round {number}: { ({name: values[-1:] for name, values in seconds.items()}) }\n")
    faster = {
        name: round(statistics.median(a / b for a, b in zip(seconds["all-layer"], values, strict=True)), 2)
        for name, values in seconds.items()
        if name != "all-layer"
    }
    return {"epochs": EPOCHS, "faster than all-layer LoRA": faster, "ceiling": _ceilings(shape), "cache": held}


def _train(shape: Shape, settings: dict[str, Any] | None) -> tuple[float, dict[str, Any] | None]:
    """Seconds of one training, and what its cache did."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(shape, folder)
        layers = list(range(shape.entry, shape.layers))
        run = None
        if settings is not None:
            run = layercard.place(trainer, lora_layers=layers, measure=False, **settings)
        began = time.perf_counter()
        trainer.train()
        taken = time.perf_counter() - began
        return taken, None if run is None else dict(run.report.prefix_cache)


def _trainer(shape: Shape, folder: str) -> SFTTrainer:
    generator = torch.Generator().manual_seed(0)
    rows = [
        {"input_ids": torch.randint(5, 99, (shape.width,), generator=generator).tolist()} for _ in range(shape.rows)
    ]
    config = SFTConfig(
        folder,
        use_cpu=True,
        bf16=False,
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=2,
        max_length=shape.width,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    lora = LoraConfig(r=16, target_modules=LLAMA_TARGETS, task_type="CAUSAL_LM")
    model = llama(shape.layers, shape.hidden, vocab=400)
    data = Dataset.from_list(rows)
    return SFTTrainer(model, config, train_dataset=data, processing_class=tiny_tokenizer(), peft_config=lora)


def _ceilings(shape: Shape) -> dict[str, float]:
    """Speedups by layer passes alone: 3 a layer in all-layer LoRA (forward, again, backward); adapters and head free."""
    whole, prefix, above = 3 * shape.layers, shape.entry, 3 * shape.adapted
    cached = (EPOCHS * above + prefix) / EPOCHS
    return {"entry": round(whole / (prefix + above), 2), "cache": round(whole / cached, 2)}


def partly_cached(shape: Shape, rows: int = 8) -> list[dict[str, Any]]:
    """Return, for each number of cached rows in a batch, how much faster than without a cache the batch is."""
    model = _adapted(shape)
    stack = find_layers(model)
    known = torch.randint(5, 99, (rows, shape.width), generator=torch.Generator().manual_seed(1))
    found = []
    with ExitStack() as inside, tempfile.TemporaryDirectory() as folder:
        inside.enter_context(GradientEntry(model, stack, shape.entry))
        cache = inside.enter_context(PrefixCache(model, stack, shape.entry, 2**30, Path(folder) / "cache"))
        _step(model, known)
        for cached in range(0, rows + 1, 2):
            timings = alternate(_with_and_without(model, cache, known, cached), rounds=1 + shape.rounds)
            passes = (shape.entry + 3 * shape.adapted) / (shape.entry * (1 - cached / rows) + 3 * shape.adapted)
            faster = ratio(timings, "without", "with")
            found.append({"cached rows": cached, "of": rows, "faster": faster, "ceiling": round(passes, 2)})
    return found


def _with_and_without(model: Any, cache: PrefixCache, known: torch.Tensor, cached: int) -> list[Variant]:
    """Two variants of a step on `cached` known rows and new ones."""
    generator = torch.Generator().manual_seed(cached)

    def batch() -> torch.Tensor:
        new = torch.randint(5, 99, (len(known) - cached, known.shape[1]), generator=generator)
        return torch.cat([known[:cached], new])

    def paused() -> ExitStack:
        cache.pause()
        resume = ExitStack()
        resume.callback(cache.resume)
        return resume

    return [
        Variant("without", paused, lambda _: _step(model, batch())),
        Variant("with", ExitStack, lambda _: _step(model, batch())),
    ]


def _adapted(shape: Shape) -> Any:
    layers = list(range(shape.entry, shape.layers))
    config = LoraConfig(r=16, target_modules=LLAMA_TARGETS, layers_to_transform=layers, task_type="CAUSAL_LM")
    model = get_peft_model(llama(shape.layers, shape.hidden, vocab=400), config)
    model.get_base_model().activation_checkpointing_enable()
    return model.train()


def _step(model: Any, ids: torch.Tensor) -> None:
    model(input_ids=ids, labels=ids).loss.backward()
    clear_gradients(model)


def main() -> None:
    """Run both."""
    args = arguments(__doc__ or "").parse_args()
    torch.set_num_threads(args.threads)
    shape = Shape(layers=6, hidden=96, adapted=2, rows=8, width=16, rounds=1) if args.quick else Shape()
    report("prefix_cache", args, {"epochs": epochs(shape), "rows": partly_cached(shape)})


if __name__ == "__main__":
    main()
