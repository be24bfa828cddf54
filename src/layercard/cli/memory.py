"""What `plan` predicts of memory: the peak of every strategy, whether it fits a device, and what would make it fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from layercard.cli.memory_options import MemoryAsked
from layercard.cli.positions import longest_input
from layercard.cli.strategy_table import StepConditions, StrategyCost
from layercard.cost.fit import Setup, Traced, Verdict, Way, packed_shape, peak_of, verdict, ways_to_fit
from layercard.cost.packed import saved_bits, unknown_packing
from layercard.cost.peak import Peak, Training, optimizer_state, peaks_of
from layercard.cost.traced import RunShape, takes_tiles
from layercard.errors import ModelError, SettingsError
from layercard.placement.placement import LayerPlacement
from layercard.placement.strategies import PeakBytes
from layercard.precision import name_of
from layercard.progress import Progress
from layercard.sizes import bytes_text

ALL_LAYERS = "all-layer"
NOT_COUNTED = (
    "the device's context", "fragments of its allocator", "what kernels allocate inside themselves",
    "communication and sharding", "adapters outside the layers",
)  # fmt: skip
"""What no prediction of memory holds."""
NOTHING_HELPS = (
    "Neither smaller batches nor checkpointing nor 4-bit weights make it fit: take a larger device, or shard."
)


@dataclass(frozen=True)
class MemoryPlan:
    """The predicted peaks by strategy, all-layer LoRA's among them, and what they are predicted for."""

    setup: Setup
    optimizer: str
    device: int | None
    peaks: dict[str, Peak]
    ways: dict[str, list[Way]]
    """What would make those fit that do not."""
    reason: str | None = None
    """Why nothing is predicted, where nothing is."""

    def fits(self, name: str) -> Verdict | None:
        """Return whether a strategy fits the device, None where none was named or nothing is predicted."""
        if self.device is None or name not in self.peaks:
            return None
        return verdict(self.peaks[name].total, self.device)

    def of_strategy(self, name: str) -> dict[str, Any]:
        """Return what `plan --json` adds to a strategy."""
        peak = self.peaks.get(name)
        return {
            "peak_bytes": None if peak is None else peak.total,
            "peak_parts": None if peak is None else asdict(peak),
            "fits": self.fits(name),
            "would_fit": [asdict(way) for way in self.ways.get(name, ())],
        }

    def columns(self) -> dict[str, dict[str, str]]:
        """Return the columns of the table of strategies: by heading, what stands there by strategy."""
        if self.reason is not None:
            return {}
        found = {"peak memory": {name: bytes_text(peak.total) for name, peak in self.peaks.items()}}
        if self.device is not None:
            found["fits"] = {name: str(self.fits(name)) for name in self.peaks}
        return found

    def document(self) -> dict[str, Any]:
        """Return what `plan --json` says of all of it."""
        shape, training = self.setup.shape, self.setup.training
        return {
            "kind": "predicted",
            "reason": self.reason,
            "device_bytes": self.device,
            "batch_size": self.setup.rows,
            "tokens": self.setup.tokens,
            "weights": _weights(shape),
            "mixed_precision": None if shape.autocast is None else name_of(shape.autocast),
            "lora_rank": shape.rank,
            "adapters": name_of(shape.adapter_dtype),
            "optimizer": self.optimizer,
            "gradient_checkpointing": training.checkpointing,
            "head": "tiled" if shape.tiled_head else "whole",
            "not_counted": list(NOT_COUNTED),
            "all_layers": self.of_strategy(ALL_LAYERS),
        }

    def lines(self) -> list[str]:
        """Return what people are told beside the table."""
        if self.reason is not None:
            return [f"Peak memory: {self.reason}"]
        planned, every = self.peaks["planned"], self.peaks[ALL_LAYERS]
        lines = [
            f"Predicted peak memory, not measured: {bytes_text(planned.total)}; all-layer LoRA {bytes_text(every.total)}.",
            f"{_parts(planned)}.",
            f"For {self._run()}.",
        ]
        return lines if self.device is None else [*lines, *self._about_the_device(self.device)]

    def _run(self) -> str:
        shape, rows = self.setup.shape, self.setup.rows
        mixed = "" if shape.autocast is None else ", mixed precision"
        logits = ", all logits at once" if self.setup.takes_tiles and not shape.tiled_head else ""
        many = f"{rows} row{'s' * (rows != 1)} of {self.setup.tokens} tokens"
        return f"{many}, {_weights(shape)} weights{mixed}, rank {shape.rank}, {self.optimizer}{logits}"

    def _about_the_device(self, device: int) -> list[str]:
        lines = []
        for name, shown in (("planned", "The plan"), (ALL_LAYERS, "All-layer LoRA")):
            left, found = device - self.peaks[name].total, self.fits(name)
            fits = {"yes": "fits into", "tight": "hardly fits into", "no": "does not fit into"}[str(found)]
            lines.append(
                f"{shown} {fits} {bytes_text(device)}: {bytes_text(abs(left))} {'too much' if left < 0 else 'left'}."
            )
            if found != "yes":
                ways = [f"{way.change} ({bytes_text(way.peak)})" for way in self.ways[name]]
                lines += [f"  It would fit with {way}." for way in ways] or [f"  {NOTHING_HELPS}"]
        return [*lines, f"Not counted: {', '.join(NOT_COUNTED[:2])}, sharding."]


def _weights(shape: RunShape) -> str:
    return name_of(shape.dtype) if shape.bits is None else f"{shape.bits}-bit"


def _parts(peak: Peak) -> str:
    named = {"Weights": peak.weights, "adapters and gradients": peak.adapters + peak.gradients}
    named |= {"optimizer": peak.optimizer, "activations": peak.activations}
    return ", ".join(f"{name} {bytes_text(count)}" for name, count in named.items())


def peaks_ahead(asked: MemoryAsked, bare: PreTrainedModel, conditions: StepConditions, traced: Traced) -> PeakBytes:
    """Return what predicts the peak of any layers, in bytes; raises `SettingsError` where the model cannot be traced."""
    setup, _ = _setups(asked, bare, conditions)
    unknown = _unknown(asked, bare)
    if unknown is None:
        try:
            return peaks_of(traced(setup), setup.training)
        except ModelError as error:
            unknown = str(error)
    raise SettingsError(f"`max_memory` is given. {unknown} Drop it, or choose by `budget`.")


def _unknown(asked: MemoryAsked, bare: PreTrainedModel) -> str | None:
    """Why nothing is predicted for weights in the form they were saved in; None where something is, or they are packed anew."""
    return None if asked.bits is not None else unknown_packing(bare.config)


def plan_memory(
    asked: MemoryAsked,
    bare: PreTrainedModel,
    traced: Traced,
    placement: LayerPlacement,
    strategies: Sequence[StrategyCost],
    conditions: StepConditions,
) -> MemoryPlan:
    """Return the predicted peaks; where the model cannot be traced, the plan holds the reason and no peak."""
    placed, whole = _setups(asked, bare, conditions)
    if (unknown := _unknown(asked, bare)) is not None:
        return MemoryPlan(placed, asked.optimizer, asked.device, {}, {}, unknown)
    every = placement.every_layer
    wanted = {cost.strategy: (placed, cost.layers) for cost in strategies} | {ALL_LAYERS: (whole, every)}
    made = MemoryPlan(placed, asked.optimizer, asked.device, {}, {})
    try:
        with Progress("predicting peak memory"):
            peaks = {name: peak_of(setup, layers, traced) for name, (setup, layers) in wanted.items()}
            ways: dict[str, list[Way]] = {}
            for name, (setup, layers) in wanted.items():
                if asked.device is not None and verdict(peaks[name].total, asked.device) != "yes":
                    ways[name] = ways_to_fit(setup, layers, asked.device, traced, every)
    except ModelError as error:
        return replace(made, reason=str(error))
    return replace(made, peaks=peaks, ways=ways)


def _setups(asked: MemoryAsked, bare: PreTrainedModel, conditions: StepConditions) -> tuple[Setup, Setup]:
    """The placed run and that of all-layer LoRA."""
    dtype = bare.dtype if asked.dtype is None else getattr(torch, asked.dtype)
    autocast = torch.bfloat16 if asked.bf16 else None
    shape = RunShape(dtype, None, autocast, asked.rank, torch.float32, asked.tiled_head and takes_tiles(bare))
    bits = asked.bits or saved_bits(bare.config)
    if bits is not None:
        shape = packed_shape(shape, bits)
    placed = Training(
        checkpointing=conditions.checkpointing and conditions.recompute_above_entry,
        gradient_entry=conditions.gradient_entry,
        optimizer_state=optimizer_state(asked.optimizer, shape.adapter_dtype.itemsize),
        accumulating=True,
    )
    whole = replace(placed, checkpointing=conditions.checkpointing, gradient_entry=conditions.all_layer_entry)
    setup = Setup(asked.rows, longest_input(bare, wanted=asked.tokens), shape, placed, takes_tiles(bare))
    return setup, replace(setup, training=whole)
