"""Where backpropagation ends in one run, and whether layers above are checkpointed; decided once, told in the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from layercard.anatomy.gradient_entry import GradientEntry, choose_checkpointing, find_obstacle
from layercard.pipeline.before.outlook import planned_phases, predicted_schedule, predicted_step
from layercard.placement.phases import left

if TYPE_CHECKING:
    from torch import nn

    from layercard.anatomy.gradient_entry import CheckpointingAbove
    from layercard.anatomy.layers import LayerStack
    from layercard.cost.predict import StepPrediction
    from layercard.pipeline.placed_run import PlacedRun
    from layercard.placement.placement import LayerPlacement
    from layercard.settings import PlacementSettings


class EntryChoice:
    """The gradient entry of a placed run: `entry` is None where it stays where the host has it, `obstacle` says why."""

    def __init__(
        self, model: nn.Module, stack: LayerStack, placement: LayerPlacement, settings: PlacementSettings, args: Any
    ) -> None:
        self._model, self._stack, self._layer = model, stack, placement.entry
        self._setting = settings.checkpointing_above_entry
        self._above: CheckpointingAbove = "keep"
        self._why = ""
        self.obstacle = (
            find_obstacle(model, stack, placement.entry, args)
            if settings.gradient_entry
            else "`gradient_entry` is off."
        )
        self.entry: GradientEntry | None = None
        self.decide([(None, None)])
        self.undecided = self.obstacle is None and self._setting == "auto"

    def without_checkpointing(self) -> GradientEntry:
        """Return the entry with nothing checkpointed, to measure its peak memory."""
        return GradientEntry(self._model, self._stack, self._layer, checkpointing_above="off")

    def decide(self, peaks: Sequence[tuple[int | None, int | None]]) -> None:
        """Settle `entry` by each rank's peak bytes without checkpointing and of the baseline; None where unknown."""
        choices = [
            choose_checkpointing(self._setting, peak_off_bytes=off, baseline_peak_bytes=baseline)
            for off, baseline in peaks
        ]
        self._above, self._why = next((choice for choice in choices if choice[0] == "keep"), choices[0])
        self.undecided = False
        if self.obstacle is None:
            self.entry = GradientEntry(self._model, self._stack, self._layer, checkpointing_above=self._above)

    def to_dict(self) -> dict[str, Any]:
        """Return what report.json holds under `gradient_entry`."""
        obstacle = self.obstacle or (self.entry.given_up if self.entry is not None else None)
        if obstacle is not None:
            return {"layer": self._layer, "moved": False, "obstacle": obstacle}
        return {"layer": self._layer, "moved": True, "checkpointing_above": self._above, "why": self._why}


def predicted(run: PlacedRun, entries: EntryChoice) -> StepPrediction:
    """Return the predicted placed step beside the all-layer one, as this run trains, by the run's unit costs."""
    model, args = run.host.model, run.host.trainer.args
    if run.settings.schedule is not None:
        state = run.host.trainer.state
        parts = left(planned_phases(run.placement, run.settings, args, state.max_steps), state.global_step)
        return predicted_schedule(model, run.stack, run.placement, run.settings, args, parts, run.units)[0]
    return predicted_step(model, run.stack, run.placement, run.settings, args, entries.obstacle, run.units)
