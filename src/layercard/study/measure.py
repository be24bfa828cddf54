"""`measure_placements`: what a training step of several placements costs beside all-layer LoRA, on one model and its data.

A step is forward, backward, clipping and the optimizer's update, by the run's own trainer. All runs alternate on the same
batches; each has an optimizer of its own. Seconds are the wall clock's. Quality is not measured: nothing is trained to an end.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from peft import PeftModel
from torch import nn

from layercard.anatomy.layers import LayerStack
from layercard.cost.memory import memory_method
from layercard.cost.timing import Ratio
from layercard.data import Task
from layercard.errors import ModelError
from layercard.hosts.plain import PlainHost
from layercard.pipeline.before.other_parts import towers_to_shed
from layercard.pipeline.during.variants import out_of_memory
from layercard.progress import Progress
from layercard.registry import Extensions
from layercard.study.adapting import Rows, narrowed, plain_trainer, with_adapters
from layercard.study.beginning import at_beginning
from layercard.study.inference import InferenceCost, measure_inference
from layercard.study.settings import StudySettings
from layercard.study.steps import PHASE_ROUNDS, Candidate, Findings, Steps

ALL_LAYERS = "all layers"
Inputs = Mapping[str, Any]


@dataclass(frozen=True)
class RunCost:
    """What a step of one set of layers costs."""

    name: str
    seconds: tuple[float, ...]
    """Of every timed step, round by round."""
    tokens_per_second: float
    """The median over steps; padding is not counted."""
    phases: Mapping[str, float]
    """Median seconds by phase, of other steps than those timed."""
    peak_bytes: int
    adapter_parameters: int
    adapter_bytes: int
    """What PEFT saves."""
    obstacle: str | None
    """Why backpropagation does not end at the lowest adapted layer, where it could not be moved there."""
    speedup: Ratio | None
    """How many times longer a step of all-layer LoRA takes; None of that itself."""
    inference: InferenceCost | None = None

    @property
    def step_seconds(self) -> float:
        """The median seconds of a step."""
        return median(self.seconds)


@dataclass(frozen=True)
class Measurement:
    """The costs of all runs, all-layer LoRA first, and what they were measured on."""

    runs: tuple[RunCost, ...]
    device: str
    dtype: str
    memory_method: str
    rows: int
    """Of each batch."""
    tokens: tuple[int, ...]
    """Of each batch, without padding."""


def measure_placements(
    base: nn.Module,
    task: Task,
    batches: Sequence[Inputs],
    placements: Sequence[Candidate],
    settings: StudySettings,
    *,
    seed: int,
    extensions: Extensions,
    layers_path: str | None = None,
    new_tokens: int = 0,
) -> Measurement:
    """Return the costs of the placements and of all-layer LoRA, on these batches.

    `base` is given adapters and not copied. Of `settings` read are the adapters', checkpointing and `cost_rounds`. With
    `new_tokens` above 0 a causal model also answers prompts. Raises `ModelError` where memory runs out, and what narrowing
    raises.
    """
    device, dtype = next(base.parameters()).device, _dtype(base)
    model, stack = with_adapters(base, task, settings, seed, extensions, layers_path)
    candidates = [Candidate(ALL_LAYERS), *placements]
    with tempfile.TemporaryDirectory(prefix="layercard-measure-") as folder:
        trainer = plain_trainer(model, Rows(batches), lambda rows: dict(rows[0]), settings, seed, Path(folder))
        host = PlainHost(trainer)
        parts = len(candidates) * (1 + PHASE_ROUNDS + settings.cost_rounds)
        try:
            with Progress("measuring steps", total=parts) as progress:
                found = at_beginning(
                    host, lambda args: Steps(host, model, stack, args, progress).all(candidates, settings.cost_rounds)
                )
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise ModelError(
                "Memory ran out in a training step. Give a lower `--batch-size` or `--max-length`, or "
                "`--gradient-checkpointing`."
            ) from None
    answers: Mapping[str, InferenceCost] = {}
    if new_tokens:
        entered = {c.name: partial(_narrowed, model, stack, c) for c in candidates}
        answers = measure_inference(model, batches, entered, new_tokens, settings.cost_rounds)
    runs = tuple(_cost(candidate, found, answers.get(candidate.name)) for candidate in candidates)
    return Measurement(
        runs, str(device), dtype, memory_method(device, optimizer=True), len(batches[0]["input_ids"]), found.tokens
    )


def _dtype(model: nn.Module) -> str:
    """The dtype of the weights; packed ones are whole numbers."""
    name = next(str(p.dtype) for p in model.parameters() if p.is_floating_point()).removeprefix("torch.")
    packed = any(not p.is_floating_point() for p in model.parameters())
    return f"{name}, with quantized weights" if packed else name


def _narrowed(model: PeftModel, stack: LayerStack, candidate: Candidate) -> AbstractContextManager[object]:
    placement = candidate.placement
    if placement is None:
        return nullcontext()
    return narrowed(model, stack, placement.layers, towers_to_shed(model, stack, placement))


def _cost(candidate: Candidate, found: Findings, inference: InferenceCost | None) -> RunCost:
    name = candidate.name
    seconds, size = found.timings.seconds[name], found.sizes[name]
    tokens = [found.tokens[number % len(found.tokens)] for number in range(len(seconds))]
    return RunCost(
        name=name,
        seconds=seconds,
        tokens_per_second=median(count / taken for count, taken in zip(tokens, seconds, strict=True)),
        phases=found.phases[name],
        peak_bytes=found.peaks[name],
        adapter_parameters=size.parameters,
        adapter_bytes=size.bytes,
        obstacle=size.obstacle,
        speedup=None if candidate.placement is None else found.timings.ratio(ALL_LAYERS, name),
        inference=inference,
    )
