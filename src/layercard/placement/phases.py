"""The phases of a schedule: which layers learn in which part of a run. Pure; the parts are shares of the run, or steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from layercard.errors import SettingsError
from layercard.placement.placement import LayerPlacement
from layercard.settings.schedule import Rise

FINELY = 1000
"""Into how many parts a run is cut whose steps are not known."""


@dataclass(frozen=True)
class Phase:
    """Optimizer steps `begins` … `ends` - 1, in which the layers of `placement` learn."""

    begins: int
    ends: int
    placement: LayerPlacement

    @property
    def steps(self) -> int:
        """How many optimizer steps it has."""
        return self.ends - self.begins


def learning_after(placement: LayerPlacement, share: float) -> LayerPlacement:
    """Return the placement without the lower `share` of its layers, rounded to whole layers; one at least is left."""
    stopped = min(round(share * len(placement.layers)), len(placement.layers) - 1)
    return replace(placement, layers=placement.layers[stopped:])


def phases(placement: LayerPlacement, rises: Sequence[Rise], steps: int, *, warm_up: int = 0) -> tuple[Phase, ...]:
    """Return the phases of a run of `steps` optimizer steps; the first is the placement's own.

    No rise comes before `warm_up` steps have been run. A rise that would move no layer, or for which no step is left, has no
    phase; of two at one step the later holds.
    """
    begins = {0: placement}
    for rise in rises:
        learning = learning_after(placement, rise.share)
        begins[max(warm_up, round(rise.after * steps), 1)] = learning
    starts = sorted(step for step in begins if step < steps)
    changed = [step for n, step in enumerate(starts) if n == 0 or begins[step].layers != begins[starts[n - 1]].layers]
    return tuple(
        Phase(step, end, begins[step]) for step, end in zip(changed, [*changed[1:], max(steps, 1)], strict=True)
    )


def compressed(planned: Sequence[Phase], steps: int) -> tuple[int, ...] | None:
    """Return the step of a trial of `steps` optimizer steps at which each phase begins: at its share of the run.

    None where one phase would have no step there.
    """
    begins = tuple(round(phase.begins / planned[-1].ends * steps) for phase in planned)
    return begins if all(a < b for a, b in pairwise((*begins, steps))) else None


def shares(placement: LayerPlacement, rises: Sequence[Rise]) -> list[tuple[float, LayerPlacement]]:
    """Return the phases of a run whose steps are not known yet: the share of its steps, and the layers that learn."""
    return [(share, phase.placement) for share, phase in left(phases(placement, rises, FINELY), 0)]


def left(planned: Sequence[Phase], step: int) -> list[tuple[float, Phase]]:
    """Return the phases of a run that begins at `step`, each with its share of the steps that are left; the last one at least."""
    ahead = [phase for phase in planned if phase.ends > step] or [planned[-1]]
    steps = [phase.ends - max(phase.begins, step) for phase in ahead]
    return [(many / max(1, sum(steps)), phase) for many, phase in zip(steps, ahead, strict=True)]


def check_rises(placement: LayerPlacement, rises: Sequence[Rise]) -> None:
    """Raise `SettingsError` where a rise would move no layer of this placement."""
    learning = [placement, *(learning_after(placement, rise.share) for rise in rises)]
    for rise, before, after in zip(rises, learning, learning[1:], strict=False):
        if before.layers == after.layers:
            raise SettingsError(
                f"`schedule` has the rise `{rise.after:g}:{rise.share:g}`, by which no further layer of the "
                f"{len(placement.layers)} that are adapted stops learning. Name a larger share, or adapt more layers."
            )
