"""Times the phases of a schedule against all-layer LoRA; the placed step is their mean, each by its share of the run.

Every round times one step of each phase on the same batch, so the run's mean step is had round by round, and its ratio and
interval are found as those of any placed step.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from layercard.cost.allowance import FEWEST_ROUNDS, Allowance
from layercard.cost.phased import PhaseCost
from layercard.cost.speedup import Saving
from layercard.cost.timing import Timings, Variant, alternate, joined
from layercard.cost.untouched import untouched
from layercard.pipeline.during.timing import BATCHES, OUT_OF_MEMORY, SAVINGS, WITHOUT, Measurement, TimedSteps
from layercard.pipeline.during.variants import BASELINE, PLACED
from layercard.progress import Progress
from layercard.ranks import gathered

if TYPE_CHECKING:
    from layercard.anatomy.narrow import Narrowing
    from layercard.hosts.protocol import Host
    from layercard.pipeline.during.rising import Rising, RunPhase

WHOLE = "The phases of a schedule are timed whole."


def measure_phases(host: Host, narrowing: Narrowing, rising: Rising, allowance: Allowance) -> Measurement:
    """Measure within `allowance`, and leave model, trainer and random state as they were."""
    batches = host.step_batches(BATCHES)
    with ExitStack() as undo:
        undo.enter_context(Progress("layercard times all-layer LoRA and the phases of the schedule"))
        undo.enter_context(host.preserved())
        undo.enter_context(untouched(host.model))
        return _Phases(host, batches, allowance, None).through(narrowing, rising.phases)


class _Phases(TimedSteps):
    def through(self, narrowing: Narrowing, phases: Sequence[RunPhase]) -> Measurement:
        self._parts = phases
        self._warm_up(Variant(BASELINE, narrowing.all_layers, self._step))
        variants = [Variant(BASELINE, narrowing.all_layers, self._step)]
        for phase in phases:
            self._decide(phase)
            variants.append(Variant(phase.name, phase.entered, self._step))
            self._warm_up(variants[-1])
        known = [self._peaks[phase.name] for phase in phases]
        self._peaks[PLACED] = None if None in known else max(peak for peak in known if peak is not None)
        self._trainable[PLACED] = max(self._trainable[phase.name] for phase in phases)
        if self._peaks[BASELINE] is None:
            return self._without_times(OUT_OF_MEMORY)
        return self._timed(variants)

    def _decide(self, phase: RunPhase) -> None:
        """Decide about checkpointing in one phase, by the peak of its step without it."""
        if phase.entries.undecided:
            without = partial(phase.entered, phase.entries.without_checkpointing())
            self._warm_up(Variant(WITHOUT, without, self._step))
            phase.entries.decide(gathered((self._peaks[WITHOUT], self._peaks[BASELINE])))

    def _timed(self, variants: Sequence[Variant]) -> Measurement:
        first = alternate(variants, rounds=1)
        rounds = self._rounds_left(self._with_mean(first), beside=PLACED)
        if 1 + rounds < FEWEST_ROUNDS:
            return self._too_short(1 + rounds)
        return self._result(self._with_mean(joined(first, alternate(variants, rounds=rounds, first=1))))

    def _with_mean(self, timings: Timings) -> Timings:
        """Return the timings with the run's mean step beside them."""
        each = zip(*(timings.seconds[phase.name] for phase in self._parts), strict=True)
        mean = tuple(sum(p.share * s for p, s in zip(self._parts, seconds, strict=True)) for seconds in each)
        return Timings({BASELINE: timings.seconds[BASELINE], PLACED: mean, **timings.seconds})

    def _result(self, timings: Timings) -> Measurement:
        each = [timings.median(phase.name) for phase in self._parts]
        mean = sum(phase.share * seconds for phase, seconds in zip(self._parts, each, strict=True))
        scale = timings.median(PLACED) / mean  # so that the phases add up to the placed step
        costs = [PhaseCost(part.phase.ends, scale * s) for part, s in zip(self._parts, each, strict=True)]
        return replace(super()._result(timings), phases=costs)

    def _saving(self, timings: Timings) -> tuple[Saving, dict[str, str]]:
        return Saving(), dict.fromkeys(SAVINGS, WHOLE)
