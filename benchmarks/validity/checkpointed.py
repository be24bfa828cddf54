"""What an arm's steps cost under gradient checkpointing, TRL's default, beside all-layer LoRA's under it.

Checkpointing changes what a step costs and not what it learns, so no arm is trained again: each kind of its steps is timed in
turn with all-layer LoRA's on the same batches, and its kept losses are read on that clock. Layers below the entry are not
checkpointed; those above are, unless a step then holds no more memory than all-layer LoRA's, as layercard decides it by default.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor
from validity.arms import Arm, FixedLayers, WiderLayers
from validity.live import Live
from validity.pairs import Subject
from validity.recipe import Recipe
from validity.schedules import RisingEntry
from validity.training import losses

from layercard import plugins
from layercard.anatomy.gradient_entry import choose_checkpointing
from layercard.anatomy.layers import find_layers
from layercard.cost.memory import peak_bytes
from layercard.data import collate, pad_id
from layercard.random_state import random_state
from layercard.study.adapting import adapted
from layercard.study.settings import StudySettings

ROUNDS = 12
WARM_UP = 2
Batch = Mapping[str, Tensor]


def has_clock(arm: Arm) -> bool:
    """Whether an arm's steps are of few kinds; those of schedules that draw are not."""
    return isinstance(arm, FixedLayers | RisingEntry) and not isinstance(arm, WiderLayers)


def clock(subject: Subject, arm: Arm, recipe: Recipe) -> dict[str, Any]:
    """Return under `phases` what each phase of the arm costs, in steps of all-layer LoRA: medians over rounds of CPU time.

    `seen` is a step on examples that the cache does not hold, `checked` the first that it does, whose prefix is computed all
    the same and compared, `cached` any later one.
    """
    pad, size = pad_id(subject.tokenizer), subject.pair.batch
    rows = subject.training_rows(recipe.rows(1, size))[: (WARM_UP + ROUNDS) * size]
    batches = [collate(rows[i : i + size], pad) for i in range(0, len(rows), size)]
    found = []
    for at, entry in _phases(arm, depth := len(find_layers(subject.base))):
        if entry == 0 and arm.share(depth) == 1:
            found.append({"at": at, "entry": 0, "seen": 1.0, "checked": 1.0, "cached": 1.0, "above": "keep"})
            continue
        found.append({"at": at, "entry": entry} | _phase(subject, arm, recipe, entry, batches))
    return {"phases": found}


def _phases(arm: Arm, depth: int) -> list[tuple[int, int]]:
    """Return the first step of each phase and its entry."""
    if isinstance(arm, FixedLayers):
        return [(0, arm.layers[0])]
    assert isinstance(arm, RisingEntry)
    return [(0, 0), *((at, round(share * depth)) for at, share in arm.rises)]


def _phase(subject: Subject, arm: Arm, recipe: Recipe, entry: int, batches: Sequence[Batch]) -> dict[str, Any]:
    with random_state(0), _checkpointed(subject, 0) as whole, _checkpointed(subject, recipe.cache_bytes) as live:
        if isinstance(arm, FixedLayers):
            live.narrow(arm.layers)
        live.freeze_below(entry)
        step_whole, step = _step_of(whole), _step_of(live)
        live.enter(entry, checkpointing_above="off")
        above = _above(live, step, whole, step_whole, batches[0])
        live.enter(entry, checkpointing_above=above)
        return {"above": above} | _ratios(step, step_whole, batches, cached=live.cache is not None)


def _checkpointed(subject: Subject, cache_bytes: int) -> Live:
    model, stack = adapted(subject.base, "causal", StudySettings(), 0, plugins.extensions())
    model.train()
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    return Live(model, stack, cache_bytes)


def _above(
    live: Live, step: Callable[[Batch], None], whole: Live, step_whole: Callable[[Batch], None], batch: Batch
) -> Any:
    """Return whether layers above the entry are checkpointed, by layercard's own rule."""
    device = torch.device("cpu")
    off = peak_bytes(lambda: step(batch), live.model, device)
    all_layer = peak_bytes(lambda: step_whole(batch), whole.model, device)
    return choose_checkpointing("auto", peak_off_bytes=off, baseline_peak_bytes=all_layer)[0]


def _step_of(live: Live) -> Callable[[Batch], None]:
    optimizer = torch.optim.AdamW(live.trained, lr=1e-4, weight_decay=0.0, fused=True)

    def step(batch: Batch) -> None:
        losses(live, batch)[0].mean().backward()
        torch.nn.utils.clip_grad_norm_(live.trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _ratios(
    step: Callable[[Batch], None], whole: Callable[[Batch], None], batches: Sequence[Batch], *, cached: bool
) -> dict[str, Any]:
    seen = [_pair(step, whole, batch) for batch in batches][WARM_UP:]
    again = [_pair(step, whole, batch) for batch in batches] if cached else []
    return {
        "seen": round(median(seen), 4),
        "checked": round(again[0] if cached else median(seen), 4),
        "cached": round(median(again[WARM_UP:] if cached else seen), 4),
        "rounds": [round(ratio, 3) for ratio in seen + again],
    }


def _pair(step: Callable[[Batch], None], whole: Callable[[Batch], None], batch: Batch) -> float:
    """Return the CPU time of one over that of the other, on the same batch."""
    taken = []
    for run in (whole, step):
        began = time.process_time()
        run(batch)
        taken.append(time.process_time() - began)
    return taken[1] / taken[0]
