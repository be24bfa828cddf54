"""Seconds of a step and its peak memory for every set of layers, relative to all-layer LoRA, in one process.

The sets alternate on the same batches of the prepared model at the start of a training run, as a placed run is timed.
A step is forward and backward; the optimizer's is outside. On a CPU the process's own CPU time is taken, which other
processes on a busy machine do not stretch; on an accelerator, the wall clock.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from layercard.anatomy.gradient_entry import GradientEntry
from layercard.anatomy.layers import LayerStack
from layercard.cost.memory import memory_method, peak_bytes
from layercard.cost.timing import Timings, Variant, alternate
from layercard.cost.untouched import clear_gradients
from layercard.hosts.plain import PlainHost
from layercard.pipeline.during.variants import largest, stepper
from layercard.study.adapting import adapted, make_trainer
from layercard.study.arms import ALL_LAYERS, Arm
from layercard.study.beginning import at_beginning, placed
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
        host = PlainHost(trainer)
        costs = at_beginning(host, lambda args: _costs(host, model, stack, arms, args, settings.cost_rounds))
    device = next(model.parameters()).device
    return {"arms": costs, "clock": clock_name(device), "memory_method": memory_method(device)}


def clock_name(device: torch.device) -> str:
    """Return what a step on this device is timed by."""
    return CPU_CLOCK if device.type == "cpu" else WALL_CLOCK


def _costs(
    host: PlainHost, model: PeftModel, stack: LayerStack, arms: Sequence[Arm], args: Any, rounds: int
) -> dict[str, dict[str, Any]]:
    """Run every arm once for its memory, then the rounds."""
    batches = host.step_batches(BATCHES)
    step, biggest = stepper(host, batches), largest(batches)
    variants = [Variant(arm.name, partial(_as_placed, model, stack, arm, args), step) for arm in arms]
    peaks = {variant.name: _peak(host, variant, biggest) for variant in variants}
    clock = time.process_time if clock_name(host.device) == CPU_CLOCK else time.perf_counter
    return _relative(alternate(variants, rounds=rounds, clock=clock), peaks)


def _as_placed(
    model: PeftModel, stack: LayerStack, arm: Arm, args: Any
) -> AbstractContextManager[GradientEntry | None]:
    return placed(model, stack, arm.layers, args, moved=arm.name != ALL_LAYERS)


def _peak(host: PlainHost, variant: Variant, batch: int) -> int:
    with variant.entered():
        peak = peak_bytes(partial(variant.step, batch), host.model, host.device)
    clear_gradients(host.model)
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
