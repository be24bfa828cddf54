"""What a run's step was predicted to cost before it was timed, with the costs that `place` announces."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layercard.cost.predict import StepPrediction, predict_step

if TYPE_CHECKING:
    from layercard.pipeline.entry_choice import EntryChoice
    from layercard.pipeline.session import PlacedRun


def forecast(run: PlacedRun, entries: EntryChoice) -> StepPrediction:
    """Return the predicted placed step of `run` beside the all-layer one."""
    return predict_step(
        run.placement.num_layers,
        run.layers,
        checkpointing=run.host.trainer.args.gradient_checkpointing,
        gradient_entry=entries.obstacle is None,
        recompute_above_entry=run.settings.checkpointing_above_entry != "off",
        units=run.units,
    )
