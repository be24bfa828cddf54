"""Raises the gradient entry of a run on the way, as its `schedule` says: `Rising`.

Between two optimizer steps the adapters of the lower layers stop learning: they keep their values, which are saved with the
others, and the optimizer keeps what it knows of them. Backpropagation then ends at the lowest layer that still learns, and
with `prefix_cache` the states below it are cached from then on, rolled forward from those that were cached further down. A
resumed run begins in the phase that its step lies in.
"""

from __future__ import annotations

from bisect import bisect_right
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from layercard.anatomy.freezing import frozen_below
from layercard.pipeline.before.outlook import planned_phases
from layercard.pipeline.during.cache import PrefixChoice
from layercard.pipeline.during.entry import EntryChoice
from layercard.placement.phases import Phase, compressed, left

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from layercard.anatomy.gradient_entry import GradientEntry
    from layercard.pipeline.placed_run import PlacedRun
    from layercard.prefix.earlier import EarlierStates


class RunPhase:
    """One phase of a run: which layers learn, where backpropagation ends, and how long its steps took."""

    def __init__(self, run: PlacedRun, phase: Phase, share: float) -> None:
        self._run = run
        self.phase, self.share = phase, share
        self.observed: list[float] = []
        """Seconds of its optimizer steps, the first left out."""
        with frozen_below(run.stack, phase.placement.entry):
            self.entries = EntryChoice(run.host.model, run.stack, phase.placement, run.settings, run.host.trainer.args)

    @property
    def name(self) -> str:
        """What it is called among timed variants."""
        return f"from layer {self.phase.placement.entry}"

    @contextmanager
    def entered(self, entry: GradientEntry | None = None) -> Iterator[None]:
        """Let its layers alone learn inside the block, with its own gradient entry or this one."""
        entry = entry or self.entries.entry
        with ExitStack() as undo:
            undo.enter_context(frozen_below(self._run.stack, self.phase.placement.entry))
            if entry is not None:
                undo.enter_context(entry)
            yield

    def to_dict(self) -> dict[str, Any]:
        """Return what report.json holds of it."""
        return {
            "begins": self.phase.begins,
            "ends": self.phase.ends,
            "layers": list(self.phase.placement.layers),
            "gradient_entry": self.entries.to_dict(),
            "observed_step_seconds": sum(self.observed) / len(self.observed) if self.observed else None,
        }


class Rising:
    """The schedule of a run that begins at optimizer step `step` of `max_steps`."""

    def __init__(self, run: PlacedRun, step: int, max_steps: int) -> None:
        planned = planned_phases(run.placement, run.settings, run.host.trainer.args, max_steps)
        self._run = run
        self.phases = [RunPhase(run, phase, share) for share, phase in left(planned, step)]
        self.current = self.phases[0]

    @property
    def rests(self) -> bool:
        """Whether layers stop learning in what is left of the run, or did before it was resumed."""
        return any(part.phase.placement.layers != self._run.placement.layers for part in self.phases)

    def due(self, step: int) -> bool:
        """Whether another phase begins with this optimizer step."""
        return step >= self.current.phase.ends and self.current is not self.phases[-1]

    def advance(self) -> None:
        """Go on to the next phase."""
        self.current = self.phases[self.phases.index(self.current) + 1]

    def enter(self, undo: ExitStack, earlier: EarlierStates | None = None) -> PrefixChoice:
        """Let the layers of the current phase alone learn until `undo` is closed; return its prefix cache.

        `earlier` is what the cache of the phase before handed over.
        """
        run, placement, entries = self._run, self.current.phase.placement, self.current.entries
        undo.enter_context(frozen_below(run.stack, placement.entry))
        prefix = PrefixChoice(
            run.host, run.stack, placement, run.settings, entry_obstacle=entries.obstacle, earlier=earlier
        )
        return undo.enter_context(prefix)

    def in_small(self, steps: int) -> RisingInSmall | None:
        """Return the schedule as a trial of `steps` optimizer steps runs it; None where a phase would have no step there."""
        begins = compressed([part.phase for part in self.phases], steps)
        return None if begins is None else RisingInSmall(self.phases, begins)

    def to_list(self) -> list[dict[str, Any]]:
        """Return what report.json holds under `schedule`."""
        return [phase.to_dict() for phase in self.phases]


class RisingInSmall:
    """A schedule within the few optimizer steps of a trial: phase n of `phases` begins with step `begins[n]`."""

    def __init__(self, phases: Sequence[RunPhase], begins: Sequence[int]) -> None:
        self._phases, self._begins = phases, begins

    @property
    def rises(self) -> tuple[int, ...]:
        """The steps from which fewer layers learn."""
        return tuple(self._begins[1:])

    def entered(self, step: int) -> AbstractContextManager[None]:
        """Let the layers alone learn that do in optimizer step `step`; after the last step those of the last phase."""
        return self._phases[bisect_right(self._begins, step) - 1].entered()


def rising_of(run: PlacedRun, step: int, max_steps: int) -> Rising | None:
    """Return the schedule of a run, None where it has none."""
    return None if run.settings.schedule is None else Rising(run, step, max_steps)
