"""Measures baseline and placed steps at the start of training, within a share of the run, and leaves no trace.

Each variant first runs once on the largest batch: its warm-up and its peak memory. Then the variants alternate
(`layercard.cost.timing`) for as many rounds as the budget still holds. The steps run on the model without the wrapper
of DistributedDataParallel, inside accelerate's autocast: optimizer step and all-reduce are outside. Every rank runs
the same number of steps, for a host's loss may talk to other ranks. Where a trial runs, its arms' steps are timed:
they are taken anyway, so they are as many rounds as it has steps.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from layercard.cost.allowance import FEWEST_ROUNDS, Allowance
from layercard.cost.memory import peak_bytes
from layercard.cost.phased import PhaseCost
from layercard.cost.speedup import Saving, StepCost
from layercard.cost.timing import Ratio, Timings, Variant, alternate, joined
from layercard.cost.untouched import clear_gradients, trainable_parameters, untouched
from layercard.pipeline.during.variants import (
    ADAPTERS,
    BASELINE,
    CACHED,
    PLACED,
    cached_variant,
    entering,
    largest,
    make_variants,
    out_of_memory,
    stepper,
)
from layercard.progress import Progress
from layercard.ranks import gathered
from layercard.settings.checks import MOST_BUDGET

if TYPE_CHECKING:
    from layercard.anatomy.gradient_entry import GradientEntry
    from layercard.anatomy.narrow import Narrowing
    from layercard.hosts.protocol import Host
    from layercard.pipeline.during.cache import PrefixChoice
    from layercard.pipeline.during.entry import EntryChoice
    from layercard.pipeline.during.trial import Trial

BATCHES = 8
MOST_ROUNDS = 20
WITHOUT = "placed without checkpointing"
OUT_OF_MEMORY = "All-layer LoRA ran out of memory in a step of this batch size."
SAVINGS = ("saving.adapters", "saving.backward")
STEPS_TO_FILL = 2 * BATCHES
"""Placed steps that the budget must hold beside, before a cached variant is timed: its batches are cached first."""


@dataclass(frozen=True)
class Measurement:
    """What was measured; what could not be is None, with the reason in `unavailable`."""

    baseline: StepCost = field(default_factory=StepCost)
    placed: StepCost = field(default_factory=StepCost)
    ratio: Ratio | None = None
    cached: Ratio | None = None
    """Baseline over a placed step whose prefix is cached."""
    saving: Saving = field(default_factory=Saving)
    unavailable: Mapping[str, str] = field(default_factory=dict)
    timing: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Seconds of the timed steps by variant, pair by pair."""
    phases: Sequence[PhaseCost] = ()
    """What a placed step takes in each phase of a schedule."""


def measure(
    host: Host,
    narrowing: Narrowing,
    entries: EntryChoice,
    prefix: PrefixChoice,
    allowance: Allowance,
    trial: Trial | None = None,
) -> Measurement:
    """Measure the variants within `allowance`, and leave model, trainer and random state as they were.

    Where there is a `trial`, baseline and placed steps are those of its arms.
    """
    batches = host.step_batches(BATCHES)
    with ExitStack() as undo:
        undo.enter_context(Progress("layercard times all-layer and placed steps"))
        undo.enter_context(host.preserved())
        undo.enter_context(untouched(host.model))
        return TimedSteps(host, batches, allowance, trial).measure(narrowing, entries, prefix)


class TimedSteps:
    """One measurement on a model that its caller keeps untouched."""

    def __init__(self, host: Host, batches: list[Any], allowance: Allowance, trial: Trial | None) -> None:
        self._host, self._allowance, self._largest = host, allowance, largest(batches)
        self._trial = trial
        self._batches = len(batches)
        self._step = stepper(host, batches)
        self._began = time.perf_counter()
        self._peaks: dict[str, int | None] = {}
        self._trainable: dict[str, int] = {}
        self._moved = False

    def measure(self, narrowing: Narrowing, entries: EntryChoice, prefix: PrefixChoice) -> Measurement:
        """Warm every variant up and time them; an out-of-memory baseline ends it."""
        self._warm_up(Variant(BASELINE, narrowing.all_layers, self._step))
        entry = self._chosen(entries)
        self._moved = entry is not None
        variants = make_variants(narrowing, entry, self._step, split=self._allowance.holds(split=True))
        for variant in variants[1:]:
            self._warm_up(variant)
        if entry is not None and prefix.cache is not None and self._allowance.holds(split=True, beside=STEPS_TO_FILL):
            variants.append(cached_variant(entry, prefix, self._step))
            self._fill(variants[-1])
        if self._peaks[BASELINE] is None:
            return self._without_times(OUT_OF_MEMORY)
        if self._trial is not None:
            variants[:] = [self._trial.trained(v) if v.name in (BASELINE, PLACED) else v for v in variants]
        return self._timed(variants)

    def _timed(self, variants: Sequence[Variant]) -> Measurement:
        first = alternate(variants, rounds=1)
        rounds = self._rounds_left(first)
        if 1 + rounds < FEWEST_ROUNDS and len(variants) > 2:  # the split is a luxury
            variants = [variant for variant in variants if variant.name in (BASELINE, PLACED)]
            first = first.only([variant.name for variant in variants])
            rounds = self._rounds_left(first)
        if 1 + rounds < FEWEST_ROUNDS:
            return self._too_short(1 + rounds)
        return self._result(joined(first, alternate(variants, rounds=rounds, first=1)))

    def _too_short(self, rounds: int) -> Measurement:
        held = f"{rounds} round{'s' * (rounds != 1)}"
        more = " Raise `measure_budget` to measure all the same." if self._allowance.budget < MOST_BUDGET else ""
        return self._without_times(
            f"The run is too short: timing may take as long as {self._allowance.placed_steps:.0f} placed steps, which "
            f"holds {held}; {FEWEST_ROUNDS} are needed.{more}"
        )

    def _fill(self, variant: Variant) -> None:
        """Put every batch into the cache, and run one that is in it, which compares both ways."""
        with variant.entered():
            for batch in (*range(self._batches), 0):
                variant.step(batch)

    def _chosen(self, entries: EntryChoice) -> GradientEntry | None:
        """Decide about checkpointing above the entry: for `auto` by the peak of a step without it."""
        if entries.undecided:
            self._warm_up(Variant(WITHOUT, entering(entries.without_checkpointing()), self._step))
            entries.decide(gathered((self._peaks[WITHOUT], self._peaks[BASELINE])))
        return entries.entry

    def _warm_up(self, variant: Variant) -> None:
        self._peaks[variant.name] = self._peak(variant)

    def _peak(self, variant: Variant) -> int | None:
        """Warm up with one step and return its peak bytes, or None where some rank ran out of memory in it."""
        fits, peak = True, 0
        with variant.entered():
            self._trainable[variant.name] = trainable_parameters(self._host.model)
            try:
                peak = peak_bytes(partial(variant.step, self._largest), self._host.model, self._host.device)
            except RuntimeError as error:
                if variant.name == PLACED or not out_of_memory(error):
                    raise
                fits = False
        clear_gradients(self._host.model)
        if not fits and torch.cuda.is_available():
            torch.cuda.empty_cache()
        return peak if all(gathered(fits)) else None

    def _rounds_left(self, first: Timings, *, beside: str | None = None) -> int:
        """How many more rounds the budget holds, the same on every rank; a trial's own steps are taken anyway.

        `beside` is what no round runs: it is made of the others.
        """
        most = MOST_ROUNDS - 1 if self._trial is None else min(MOST_ROUNDS, self._trial.micro_steps) - 1
        if self._trial is not None and len(first.seconds) == 2:
            return most
        spent = time.perf_counter() - self._began
        a_round = sum(values[0] for name, values in first.seconds.items() if name != beside)
        left = (self._allowance.placed_steps * first.seconds[PLACED][0] - spent) / a_round
        return max(0, min(most, *gathered(int(left))))

    def _without_times(self, reason: str) -> Measurement:
        unavailable = {"step_speedup": reason}
        if self._peaks[BASELINE] is None:
            unavailable["baseline.peak_bytes"] = reason
        return Measurement(self._cost(BASELINE), self._cost(PLACED), unavailable=unavailable)

    def _result(self, timings: Timings) -> Measurement:
        ratio = timings.ratio(BASELINE, PLACED)
        saving, unavailable = self._saving(timings)
        if CACHED in timings.seconds:
            left = 1.0 / ratio.value - 1.0 / timings.ratio(BASELINE, CACHED).value
            saving = replace(saving, prefix_cache=left)
        return Measurement(
            baseline=self._cost(BASELINE, timings),
            placed=self._cost(PLACED, timings),
            ratio=ratio,
            cached=timings.ratio(BASELINE, CACHED) if CACHED in timings.seconds else None,
            saving=saving,
            unavailable=unavailable,
            timing=timings.seconds,
        )

    def _cost(self, name: str, timings: Timings | None = None) -> StepCost:
        return StepCost(
            step_seconds=None if timings is None else timings.median(name),
            peak_bytes=self._peaks[name],
            trainable_parameters=self._trainable[name],
            step_seconds_spread=None if timings is None else timings.spread(name),
        )

    def _saving(self, timings: Timings) -> tuple[Saving, dict[str, str]]:
        left = 1.0 / timings.ratio(BASELINE, PLACED).value
        if not self._moved:  # the report knows why, and says it of `saving.backward`
            return Saving(adapters=1.0 - left), {}
        if ADAPTERS not in timings.seconds:
            return Saving(), dict.fromkeys(SAVINGS, "The run is too short to time the adapters' share apart.")
        without_entry = 1.0 / timings.ratio(BASELINE, ADAPTERS).value
        return Saving(adapters=1.0 - without_entry, backward=without_entry - left), {}
