"""Seconds of a step and its peak memory for every set of layers, relative to all-layer LoRA, in one process.

The sets alternate on the same batches of the prepared model at the start of a training run, as a placed run is timed.
A step is forward and backward; the optimizer's is outside. On a CPU the process's own CPU time is taken, which other
processes on a busy machine do not stretch; on an accelerator, the wall clock.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import TrainerCallback

from layercard.anatomy.layers import LayerStack
from layercard.cost.memory import memory_method, peak_bytes
from layercard.cost.timing import Timings, Variant, alternate
from layercard.cost.untouched import clear_gradients, untouched
from layercard.hosts.plain import PlainHost
from layercard.pipeline.during.variants import largest, stepper
from layercard.study.adapting import adapted, entry_of, make_trainer, narrowed
from layercard.study.arms import ALL_LAYERS, Arm
from layercard.study.examples import training_rows
from layercard.study.training import Subject

BATCHES = 8
CPU_CLOCK, WALL_CLOCK = "CPU time of the process", "wall clock"


def measure_costs(subject: Subject, arms: Sequence[Arm], seed: int) -> dict[str, Any]:
    """Return under `arms`, by name, `step_seconds_ratio` with its interval, `peak_memory_ratio`, and what is behind them.

    `memory_method` says how peak memory was counted, `clock` what steps were timed by.
    """
    settings = subject.settings
    rows = training_rows(
        subject.data, subject.tokenizer, subject.task, settings, seed, tokenize=subject.extensions.tokenize_examples
    )
    model, stack = adapted(subject.base, subject.task, settings, seed, subject.extensions)
    with tempfile.TemporaryDirectory(prefix="layercard-study-") as folder:
        trainer = make_trainer(model, rows, subject.tokenizer, settings, seed, Path(folder))
        timer = _AtBeginning(PlainHost(trainer), model, stack, arms, settings.cost_rounds)
        trainer.add_callback(timer)
        trainer.train()
    device = next(model.parameters()).device
    return {"arms": timer.costs, "clock": clock_name(device), "memory_method": memory_method(device)}


def clock_name(device: torch.device) -> str:
    """Return what a step on this device is timed by."""
    return CPU_CLOCK if device.type == "cpu" else WALL_CLOCK


class _AtBeginning(TrainerCallback):
    """Measures when training begins, then ends the run after its first step."""

    def __init__(self, host: PlainHost, model: PeftModel, stack: LayerStack, arms: Sequence[Arm], rounds: int) -> None:
        self._host, self._model, self._stack, self._arms, self._rounds = host, model, stack, arms, rounds
        self.costs: dict[str, dict[str, Any]] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Run every arm once for its memory, then the rounds."""
        batches = self._host.step_batches(BATCHES)
        step = stepper(self._host, batches)
        biggest = largest(batches)
        with self._host.preserved(), untouched(self._model):
            variants = [Variant(arm.name, partial(self._as_placed, arm, args), step) for arm in self._arms]
            peaks = {variant.name: self._peak(variant, biggest) for variant in variants}
            clock = time.process_time if clock_name(self._host.device) == CPU_CLOCK else time.perf_counter
            self.costs = _relative(alternate(variants, rounds=self._rounds, clock=clock), peaks)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop: what was wanted is measured."""
        control.should_training_stop = True

    @contextmanager
    def _as_placed(self, arm: Arm, args: Any) -> Iterator[None]:
        with narrowed(self._model, self._stack, arm.layers):
            entry = None if arm.name == ALL_LAYERS else entry_of(self._model, self._stack, arm.layers, args)
            if entry is None:
                yield
                return
            with entry:
                yield

    def _peak(self, variant: Variant, batch: int) -> int:
        with variant.entered():
            peak = peak_bytes(partial(variant.step, batch), self._model, self._host.device)
        clear_gradients(self._model)
        return peak


def _relative(timings: Timings, peaks: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    costs: dict[str, dict[str, Any]] = {}
    for name, peak in peaks.items():
        costs[name] = {"peak_memory_ratio": peak / peaks[ALL_LAYERS], "peak_bytes": peak, "step_seconds_ratio": None}
        if timings.rounds:
            ratio = timings.ratio(name, ALL_LAYERS)
            costs[name] |= {
                "step_seconds_ratio": ratio.value,
                "step_seconds_interval": [ratio.low, ratio.high],
                "interval_coverage": ratio.coverage,
                "step_seconds": timings.median(name),
                "pairs": timings.rounds,
            }
    return costs
