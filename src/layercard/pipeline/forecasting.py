"""What a run's step was predicted to cost before it was timed, with the costs that `place` announces."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layercard.pipeline.outlook import predicted_step

if TYPE_CHECKING:
    from layercard.cost.predict import StepPrediction
    from layercard.pipeline.entry_choice import EntryChoice
    from layercard.pipeline.session import PlacedRun


def forecast(run: PlacedRun, entries: EntryChoice) -> StepPrediction:
    """Return the predicted placed step of `run` beside the all-layer one."""
    model, args = run.host.model, run.host.trainer.args
    return predicted_step(model, run.stack, run.placement, run.settings, args, entries.obstacle, run.units)
