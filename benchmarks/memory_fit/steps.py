"""Predicted against measured step time of random placements, each in alternation with all-layer LoRA in one process."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

from common import LLAMA_TARGETS, llama, token_batches
from training import bare, in_trl

from layercard.anatomy.gradient_entry import GradientEntry
from layercard.anatomy.layers import find_layers
from layercard.anatomy.narrow import narrow
from layercard.cli.costs import plan_costs
from layercard.cost.predict import UnitCosts, predict_step
from layercard.cost.timing import Variant, alternate
from layercard.cost.unit_costs import measure_unit_costs
from layercard.cost.untouched import clear_gradients

PLACEMENTS, DEPTH = 20, 24


def _drawn(depth: int, count: int) -> list[tuple[int, ...]]:
    """Placements whose entry and density are drawn evenly, so that high and low, few and many layers all occur."""
    generator = random.Random(0)
    drawn = []
    for _ in range(count):
        entry, density = generator.randrange(depth), generator.random()
        drawn.append((entry, *(layer for layer in range(entry + 1, depth) if generator.random() < density)))
    return drawn


def steps(quick: bool) -> Iterator[dict[str, Any]]:
    """Yield random placements, their measured step time over all-layer LoRA's, and the two predictions."""
    depth, hidden, count, rounds = (6, 96, 2, 2) if quick else (DEPTH, 288, PLACEMENTS, 7)
    drawn = _drawn(depth, count)
    for checkpointing in (True, False):
        found: list[dict[str, Any]] = []
        model = llama(depth, hidden, vocab=400)
        planned, _ = plan_costs(*bare(model), LLAMA_TARGETS, timed=True)
        own = measure_unit_costs(
            model, find_layers(model), token_batches(1, 2, 64, 400)[0], target_modules=_inside(model), rank=16
        )

        def work(host: Any, on: bool = checkpointing, units: Any = (planned, own), found: Any = found) -> None:
            for layers in drawn:
                found.append(
                    _step_row(
                        host, layers, on, dict(zip(("as plan times", "on the batch"), units, strict=True)), rounds
                    )
                )
                sys.stderr.write(f"{found[-1]}\n")

        in_trl(model, work, rows=2, width=64, checkpointing=checkpointing, bf16=False)
        yield from found


def _inside(model: Any) -> list[str]:
    return [
        name for name, _ in find_layers(model).layers[0].named_modules() if name.rpartition(".")[2] in LLAMA_TARGETS
    ]


def _step_row(
    host: Any, layers: tuple[int, ...], checkpointing: bool, units: dict[str, UnitCosts], rounds: int
) -> dict[str, Any]:
    model, batches = host.model, host.step_batches(4)
    stack = find_layers(model)
    narrowing = narrow(model, stack, layers)

    def step(number: int) -> None:
        host.training_step(model, batches[number % len(batches)])
        clear_gradients(model)

    def moved() -> AbstractContextManager[object]:
        return GradientEntry(model, stack, layers[0])

    try:
        variants = [Variant("all-layer", narrowing.all_layers, step), Variant("placed", moved, step)]
        alternate(variants, rounds=2)
        measured = alternate(variants, rounds=rounds).ratio("placed", "all-layer")
    finally:
        narrowing.undo()
    predicted = {
        name: predict_step(
            len(stack), layers, checkpointing=checkpointing, units=found, all_layer_entry=not checkpointing
        ).ratio
        for name, found in units.items()
    }
    return {
        "layers": list(layers),
        "checkpointing": checkpointing,
        "measured": round(measured.value, 3),
        "low": round(measured.low, 3),
        "high": round(measured.high, 3),
        "predicted": {name: round(value, 3) for name, value in predicted.items()},
        "error": {name: round(value / measured.value - 1, 4) for name, value in predicted.items()},
    }
