"""What it saves that the prefix cache rolls forward where a schedule raises the gradient entry: the epoch after the rise.

    python benchmarks/prefix_rise/run.py [--quick] [--write]

A random Llama with adapters from the old entry up. Every example is cached at the old entry; then the entry rises, and one
epoch of forward and backward passes on all examples, in another order, is run in turns within one process: `rolled` from what
was cached, `anew` with an empty cache, and `without` a cache. The check of the first rolled batch is run before the clock is: it
costs a step or two of a run (LOG.md), whatever its length. Times are the process's CPU seconds; optimizer steps, which are the
same, are left out. The ceiling beside each ratio counts layer passes alone, 3 a layer above the entry under checkpointing.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from layercard.anatomy.freezing import frozen_below
from layercard.anatomy.gradient_entry import GradientEntry
from layercard.anatomy.layers import LayerStack, find_layers
from layercard.cost.timing import Variant, alternate, joined
from layercard.cost.untouched import clear_gradients
from layercard.prefix.cache import PrefixCache
from layercard.prefix.earlier import EarlierStates

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import LLAMA_TARGETS, arguments, llama, ratio, report

ROWS = 2
"""Examples in a batch."""


@dataclass(frozen=True)
class Shape:
    """The model, the data, and how often everything is run."""

    layers: int = 30
    hidden: int = 288
    examples: int = 32
    width: int = 64
    rounds: int = 5
    rises: tuple[tuple[int, int], ...] = ((20, 25), (10, 20))


class Rise:
    """One rise, from layer `old` to layer `new`, of a model whose examples are cached at `old`."""

    def __init__(self, shape: Shape, old: int, new: int, limit: int) -> None:
        self._old, self._new, self._limit = old, new, limit
        self._shape = shape
        self._model = _adapted(shape, old)
        self._stack: LayerStack = find_layers(self._model)
        rows = shape.examples + ROWS
        ids = torch.randint(5, 99, (rows, shape.width), generator=torch.Generator().manual_seed(1))
        self._ids, self._checked = ids[ROWS:], ids[:ROWS]
        self.use: dict[str, Any] = {}

    def variants(self) -> list[Variant]:
        """The three ways of running the epoch after the rise."""
        return [
            Variant("without", self._without, self._epoch),
            Variant("anew", lambda: self._risen("anew"), self._epoch),
            Variant("rolled", lambda: self._risen("rolled"), self._epoch),
        ]

    @contextmanager
    def _without(self) -> Iterator[None]:
        with frozen_below(self._stack, self._new), GradientEntry(self._model, self._stack, self._new):
            yield

    @contextmanager
    def _risen(self, how: str) -> Iterator[None]:
        with tempfile.TemporaryDirectory() as folder:
            earlier = self._cached_before(Path(folder) / "cache")
            if how == "anew":
                earlier.close()
                earlier = EarlierStates()
            with self._without(), self._cache(self._new, Path(folder) / "cache", earlier) as cache:
                self._model(input_ids=self._checked)
                yield
                self.use[how] = {"hits": cache.use.hits, "rolled": cache.use.rolled, "misses": cache.use.misses}

    def _cached_before(self, folder: Path) -> EarlierStates:
        with ExitStack() as undo:
            undo.enter_context(GradientEntry(self._model, self._stack, self._old))
            cache = undo.enter_context(self._cache(self._old, folder, EarlierStates()))
            with torch.no_grad():
                for ids in (self._checked, *self._ids.split(ROWS)):
                    self._model(input_ids=ids)
            return cache.hand_over()

    def _cache(self, entry: int, folder: Path, earlier: EarlierStates) -> PrefixCache:
        return PrefixCache(self._model, self._stack, entry, self._limit, folder, earlier=earlier)

    def _epoch(self, number: int) -> None:
        order = torch.randperm(len(self._ids), generator=torch.Generator().manual_seed(number))
        for ids in self._ids[order].split(ROWS):
            self._model(input_ids=ids, labels=ids).loss.backward()
            clear_gradients(self._model)


def _adapted(shape: Shape, lowest: int) -> Any:
    layers = list(range(lowest, shape.layers))
    config = LoraConfig(r=8, target_modules=LLAMA_TARGETS, layers_to_transform=layers, task_type="CAUSAL_LM")
    model = get_peft_model(llama(shape.layers, shape.hidden, vocab=400), config)
    model.get_base_model().activation_checkpointing_enable()
    return model.train()


def measured(shape: Shape, old: int, new: int, limit: int) -> dict[str, Any]:
    """Return how much faster the epoch after the rise is when the cache rolls."""
    rise = Rise(shape, old, new, limit)
    variants = rise.variants()
    alternate(variants, rounds=1)
    timings = alternate(variants, rounds=1, first=1, clock=time.process_time)
    timings = joined(timings, alternate(variants, rounds=shape.rounds - 1, first=2, clock=time.process_time))
    above = 3 * (shape.layers - new)
    return {
        "rise": [old, new],
        "kept": "memory" if limit > 1 else "disk",
        "rolled, over anew": ratio(timings, "anew", "rolled"),
        "ceiling": round((new + above) / (new - old + above), 2),
        "rolled, over without a cache": ratio(timings, "without", "rolled"),
        "anew, over without a cache": ratio(timings, "without", "anew"),
        "use": rise.use,
    }


def main() -> None:
    """Run every rise in memory, and the first one on disk."""
    args = arguments(__doc__ or "").parse_args()
    torch.set_num_threads(args.threads)
    shape = Shape(6, 96, 8, 16, 2, ((1, 4),)) if args.quick else Shape()
    cases = [*((old, new, 2**30) for old, new in shape.rises), (*shape.rises[0], 1)]
    found = []
    for case in cases:
        found.append(measured(shape, *case))
        sys.stderr.write(f"{found[-1]}\n")
    report("prefix_rise", args, found)


if __name__ == "__main__":
    main()
