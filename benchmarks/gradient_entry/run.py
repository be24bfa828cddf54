"""The step time of placed layers against all-layer LoRA: as the host leaves it, entry moved, prefix cached.

    python benchmarks/gradient_entry/run.py --setup hidden-288 [--quick] [--write]

Inside real TRL `SFTTrainer.train()`, at its defaults, checkpointing on: for each placement all variants alternate on the
same batches of one process, so a row's ratios are of one run. The ceiling beside each ratio counts what layers and head
must still run (`Bench._ceilings`).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainerCallback
from trl import SFTConfig, SFTTrainer

from layercard.anatomy.gradient_entry import GradientEntry
from layercard.anatomy.layers import LayerStack, find_layers
from layercard.anatomy.narrow import Narrowing, narrow
from layercard.cost.memory import peak_bytes
from layercard.cost.timing import Timings, Variant, alternate
from layercard.cost.untouched import clear_gradients
from layercard.prefix.cache import PrefixCache

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from common import LLAMA_TARGETS, arguments, llama, ratio, report

from layercard_trl.host import SFTHost
from tiny import tiny_tokenizer

PLACEMENTS: dict[str, tuple[int, ...]] = {
    "last 5": tuple(range(25, 30)),
    "upper half": tuple(range(15, 30)),
    "uniform third over the upper two thirds": tuple(range(11, 30, 2)),
    "middle 5 (12–16)": tuple(range(12, 17)),
    "last quarter": tuple(range(22, 30)),
}
MIB = 2**20


@dataclass(frozen=True)
class Setup:
    """One model and how TRL trains it."""

    hidden: int
    rows: int = 2
    width: int = 64
    checkpointing: bool = True
    above: str = "keep"
    nf4: bool = False
    smollm2: bool = False
    layers: int = 30
    rounds: int = 7


SETUPS = {
    "hidden-288": Setup(288),
    "hidden-768": Setup(768, rounds=5),
    "nf4-hidden-768": Setup(768, nf4=True, rounds=5),
    "smollm2-checkpointing": Setup(576, smollm2=True),
    "smollm2-checkpointing-off-above": Setup(576, smollm2=True, above="off"),
    "smollm2-no-checkpointing": Setup(576, smollm2=True, checkpointing=False),
}


def trainer(setup: Setup, folder: str) -> SFTTrainer:
    """Return TRL's trainer over full rows of random tokens, all layers adapted."""
    model, tokenizer = _model(setup, folder)
    generator = torch.Generator().manual_seed(0)
    top = min(len(tokenizer), 400) - 1
    rows = [{"input_ids": torch.randint(5, top, (setup.width,), generator=generator).tolist()} for _ in range(64)]
    config = SFTConfig(
        folder,
        use_cpu=True,
        bf16=setup.smollm2,
        max_steps=1000,
        per_device_train_batch_size=setup.rows,
        activation_checkpointing=setup.checkpointing,
        max_length=setup.width,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    lora = LoraConfig(r=16, target_modules=LLAMA_TARGETS, task_type="CAUSAL_LM")
    data = Dataset.from_list(rows)
    return SFTTrainer(model, config, train_dataset=data, processing_class=tokenizer, peft_config=lora)


def _model(setup: Setup, folder: str) -> tuple[Any, Any]:
    if setup.smollm2:
        from layercard_trl.demo.model import demo_model

        path = demo_model(lambda _: None)
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16), AutoTokenizer.from_pretrained(path)
    model = llama(setup.layers, setup.hidden, vocab=400)
    if setup.nf4:
        model.save_pretrained(folder)
        quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
        model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=quantization, dtype=torch.float32)
    return model, tiny_tokenizer()


class Bench(TrainerCallback):
    """Runs all placements where training begins, then stops the training."""

    def __init__(self, sft: SFTTrainer, setup: Setup, placements: dict[str, tuple[int, ...]]) -> None:
        self.host = SFTHost(sft)
        self.setup, self.placements = setup, placements
        self.rows: list[dict[str, Any]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure."""
        batches = self.host.step_batches(4)
        with self.host.preserved():
            for name, layers in self.placements.items():
                self.rows.append(self._placement(name, layers, batches))
                sys.stderr.write(f"{self.rows[-1]}\n")
        control.should_training_stop = True

    def _placement(self, name: str, layers: tuple[int, ...], batches: list[Any]) -> dict[str, Any]:
        model = self.host.model
        stack = find_layers(model)
        narrowing = narrow(model, stack, layers)
        try:
            with _cache(model, stack, layers[0]) as cached:
                variants = self._variants(narrowing, stack, layers[0], cached, batches)
                peaks = {v.name: _peak(v, self.host) for v in variants}
                alternate(variants, rounds=len(batches))  # fills the cache with every batch, and warms up
                timings = alternate(variants, rounds=self.setup.rounds)
        finally:
            narrowing.undo()
        found = {v.name: ratio(timings, "all-layer", v.name) for v in variants[1:]}
        mib = {n: round(peak / MIB) for n, peak in peaks.items()}
        return {
            "placement": name,
            "faster than all-layer LoRA": found,
            "ceiling": self._ceilings(layers, timings),
            "peak MiB": mib,
        }

    def _variants(
        self, narrowing: Narrowing, stack: LayerStack, entry: int, cached: Callable[[], Any], batches: list[Any]
    ) -> list[Variant]:
        model = self.host.model

        def step(number: int) -> None:
            self.host.training_step(model, batches[number % len(batches)])
            clear_gradients(model)

        def moved() -> GradientEntry:
            return GradientEntry(model, stack, entry, checkpointing_above=self.setup.above)  # type: ignore[arg-type]

        @contextmanager
        def with_cache() -> Iterator[None]:
            with ExitStack() as undo:
                undo.enter_context(moved())
                undo.enter_context(cached())
                yield

        return [
            Variant("all-layer", narrowing.all_layers, step),
            Variant("as the host leaves it", nullcontext, step),
            Variant("entry", moved, step),
            Variant("cache", with_cache, step),
        ]

    def _ceilings(self, layers: tuple[int, ...], timings: Timings) -> dict[str, float]:
        """Return the speedups if every layer below the entry cost no backward, no recomputation, or nothing at all.

        An adapter costs what shedding the others was measured to save. The rest of an all-layer step is layers and head:
        a layer's forward, recomputation and backward cost the same, the head's forward and backward as much as its
        parameters are many.
        """
        model, depth = self.host.model, self.setup.layers
        all_layer, host = timings.median("all-layer"), timings.median("as the host leaves it")
        shed = max(0.0, all_layer - host)
        adapters = shed * depth / (depth - len(layers))
        passes = 3 if self.setup.checkpointing else 2
        stack = find_layers(model)
        in_layer = sum(p.numel() for p in stack.layers[0].parameters())
        head = 2 * sum(p.numel() for p in model.get_base_model().get_output_embeddings().parameters()) / in_layer
        unit = (all_layer - adapters) / (passes * depth + head)
        saved_above = (depth - layers[0]) * unit if self.setup.checkpointing and self.setup.above == "off" else 0.0
        left = all_layer - shed - saved_above
        entry = left - layers[0] * (passes - 1) * unit
        return {"entry": round(all_layer / entry, 2), "cache": round(all_layer / (entry - layers[0] * unit), 2)}


@contextmanager
def _cache(model: Any, stack: LayerStack, entry: int) -> Iterator[Callable[[], Any]]:
    """Yield what lets one cache, kept for all rounds, work for the length of a step."""
    with (
        tempfile.TemporaryDirectory() as folder,
        PrefixCache(model, stack, entry, 2**30, Path(folder) / "cache") as cache,
    ):
        cache.pause()

        @contextmanager
        def working() -> Iterator[None]:
            cache.resume()
            try:
                yield
            finally:
                cache.pause()

        yield working


def _peak(variant: Variant, host: SFTHost) -> int:
    with variant.entered():
        return peak_bytes(lambda: variant.step(0), host.model, host.device)


def main() -> None:
    """Run one setup."""
    parser: argparse.ArgumentParser = arguments(__doc__ or "")
    parser.add_argument("--setup", choices=SETUPS, default="hidden-288")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    setup, placements = SETUPS[args.setup], PLACEMENTS
    if args.quick:
        setup = replace(setup, hidden=128, layers=6, rounds=2, width=16, smollm2=False)
        placements = {"last 2": (4, 5)}
    with tempfile.TemporaryDirectory() as folder:
        sft = trainer(setup, folder)
        bench = Bench(sft, setup, placements)
        sft.add_callback(bench)
        sft.train()
    report(f"gradient_entry-{args.setup}", args, bench.rows)


if __name__ == "__main__":
    main()
