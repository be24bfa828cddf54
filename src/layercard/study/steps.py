"""Steps of several sets of layers on one model that is about to train: memory, phases and times; see `measure.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict

from layercard.anatomy.gradient_entry import find_obstacle
from layercard.anatomy.layers import LayerStack
from layercard.anatomy.verify import verify_placement
from layercard.cost.memory import peak_bytes
from layercard.cost.phases import PhaseWatch
from layercard.cost.timing import Timings, Variant, alternate
from layercard.cost.untouched import clear_gradients
from layercard.hosts.optimizers import trial_optimizer
from layercard.hosts.plain import PlainHost
from layercard.pipeline.before.other_parts import towers_to_shed
from layercard.pipeline.during.variants import largest
from layercard.placement.placement import LayerPlacement
from layercard.progress import Progress
from layercard.study.beginning import placed

BATCHES = 8
PHASE_ROUNDS = 5
MEMORY_STEPS = 2
"""The first makes the optimizer's state, the second runs with it."""


@dataclass(frozen=True)
class Candidate:
    """A set of layers to measure; without a placement it is all-layer LoRA, as a host runs it."""

    name: str
    placement: LayerPlacement | None = None


@dataclass
class AdapterSize:
    """What PEFT saves, and why backpropagation goes below the lowest adapted layer where it does."""

    parameters: int = 0
    bytes: int = 0
    obstacle: str | None = None


@dataclass
class Findings:
    """What was measured, by the names of the candidates."""

    peaks: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, AdapterSize] = field(default_factory=dict)
    phases: dict[str, Mapping[str, float]] = field(default_factory=dict)
    timings: Timings = field(default_factory=lambda: Timings({}))
    tokens: tuple[int, ...] = ()


class Steps:
    """One measurement on a model that its caller keeps untouched."""

    def __init__(self, host: PlainHost, model: PeftModel, stack: LayerStack, args: Any, progress: Progress) -> None:
        self._host, self._model, self._stack, self._args, self._progress = host, model, stack, args, progress
        self._batches = host.step_batches(BATCHES)

    def all(self, candidates: Sequence[Candidate], rounds: int) -> Findings:
        """Measure memory, which warms up, then phases, then step times."""
        found = Findings(tokens=tuple(_tokens(inputs) for inputs, _ in self._batches))
        for candidate in candidates:
            found.sizes[candidate.name], found.peaks[candidate.name] = self._memory(candidate)
            self._progress.advance()
        optimizers = {candidate.name: self._optimizer(candidate) for candidate in candidates}
        watches = {candidate.name: PhaseWatch() for candidate in candidates}
        alternate([self._phased(c, optimizers[c.name], watches[c.name]) for c in candidates], rounds=PHASE_ROUNDS)
        found.phases = {name: watch.medians() for name, watch in watches.items()}
        found.timings = alternate([self._variant(c, optimizers[c.name]) for c in candidates], rounds=rounds)
        return found

    def _entered(self, candidate: Candidate) -> AbstractContextManager[object]:
        placement = candidate.placement
        if placement is None:
            return nullcontext()
        towers = towers_to_shed(self._model, self._stack, placement)
        return placed(self._model, self._stack, placement.layers, self._args, shed_towers=towers)

    def _optimizer(self, candidate: Candidate) -> torch.optim.Optimizer:
        with self._entered(candidate):
            return trial_optimizer(self._host.trainer)

    def _memory(self, candidate: Candidate) -> tuple[AdapterSize, int]:
        """Return the adapter's size and the peak of a step on the largest batch, with the optimizer's state."""
        optimizer, biggest = self._optimizer(candidate), largest(self._batches)

        def steps() -> None:
            for _ in range(MEMORY_STEPS):
                self._step(optimizer, biggest)

        with self._entered(candidate) as entry:
            size = self._size(candidate, moved=entry is not None)
            peak = peak_bytes(steps, self._model, self._host.device)
        return size, peak

    def _size(self, candidate: Candidate, *, moved: bool) -> AdapterSize:
        saved = get_peft_model_state_dict(self._model, save_embedding_layers=False).values()
        size = AdapterSize(sum(t.numel() for t in saved), sum(t.numel() * t.element_size() for t in saved))
        placement = candidate.placement
        if placement is None:
            return size
        towers = towers_to_shed(self._model, self._stack, placement)
        verify_placement(self._model, self._stack, placement.layers, shed_towers=towers)
        if not moved:
            size.obstacle = find_obstacle(self._model, self._stack, placement.entry, self._args)
        return size

    def _variant(self, candidate: Candidate, optimizer: torch.optim.Optimizer) -> Variant:
        return Variant(candidate.name, partial(self._entered, candidate), partial(self._counted, optimizer))

    def _counted(self, optimizer: torch.optim.Optimizer, number: int) -> None:
        self._step(optimizer, number)
        self._progress.advance()

    def _phased(self, candidate: Candidate, optimizer: torch.optim.Optimizer, watch: PhaseWatch) -> Variant:
        def step(number: int) -> None:
            hook = self._model.register_forward_hook(lambda *_: watch.mark("forward"))
            try:
                watch.start()
                self._step(optimizer, number, watch.mark)
            finally:
                hook.remove()
            self._progress.advance()

        return Variant(candidate.name, partial(self._entered, candidate), step)

    def _step(
        self, optimizer: torch.optim.Optimizer, number: int, mark: Callable[[str], None] = lambda phase: None
    ) -> None:
        """Run a whole training step on the batch of a number, as the trainer's loop does."""
        self._host.training_step(self._model, self._batches[number % len(self._batches)])
        mark("backward")
        if self._args.max_grad_norm > 0:
            torch.nn.utils.clip_grad_norm_(
                [p for p in self._model.parameters() if p.requires_grad], self._args.max_grad_norm
            )
        optimizer.step()
        clear_gradients(self._model)
        mark("optimizer")


def _tokens(inputs: Mapping[str, Any]) -> int:
    mask = inputs.get("attention_mask")
    return int(inputs["input_ids"].numel() if mask is None else mask.sum())
