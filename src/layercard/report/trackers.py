"""Tells the trainer's own trackers: scalars when steps have been measured and at the end, and then the report.

TensorBoard, Weights & Biases and Trackio get both under `layercard/`; every other tracker of transformers gets the
scalars through its callback's `on_log`. Numbers that are not known are left out. Only trackers that the user turned on
are there to be told, and on the first process alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from layercard.cost.speedup import SpeedupReport
from layercard.report.forgetting import forgetting_rise
from layercard.report.markdown import markdown
from layercard.report.verdict import verdict_of

log = logging.getLogger("layercard")

PREFIX = "layercard/"


def scalars(report: SpeedupReport) -> dict[str, float]:
    """Return what is known of a run as numbers, by the names that trackers show."""
    quality = verdict_of(report).quality
    low, high = report.interval or (None, None)
    found = {
        "step_speedup": report.step_speedup,
        "step_speedup_low": low,
        "step_speedup_high": high,
        "end_to_end_speedup": report.end_to_end_speedup,
        "seconds_saved": report.seconds_saved,
        "share_kept": quality.share if quality.kind in ("measured", "predicted", "reference") else None,
        "share_kept_low": quality.interval[0] if quality.interval else None,
        "share_kept_high": quality.interval[1] if quality.interval else None,
        "forgetting": forgetting_rise(report.quality),
        "overhead_seconds": report.probe_seconds + report.overhead_seconds,
        "adapted_layers": len(report.layers),
        "peak_bytes": report.placed.peak_bytes,
        "all_layer_peak_bytes": report.baseline.peak_bytes,
    }
    return {PREFIX + name: float(value) for name, value in found.items() if value is not None}


def tell_trackers(trainer: Any, report: SpeedupReport, page: str | None = None) -> None:
    """Give the trainer's trackers the scalars, and with `page` (HTML) the report.

    Call it while they are open: after their `on_train_begin`, before their `on_train_end`. A tracker that fails is said
    and does not stop the training.
    """
    if not trainer.is_world_process_zero():
        return
    for callback, tell in _trackers(trainer.callback_handler.callbacks):
        try:
            tell(callback, trainer, report, page)
        except Exception as error:  # noqa: BLE001  other people's code on a network; a training is worth more than its log
            log.warning("%s did not take the report: %s: %s", type(callback).__name__, type(error).__name__, error)


Tell = Callable[[Any, Any, SpeedupReport, str | None], None]


def _trackers(callbacks: list[Any]) -> Iterator[tuple[Any, Tell]]:
    """Yield the trackers among a trainer's callbacks, each with how it is told."""
    from transformers.integrations import integration_utils as known

    own: Mapping[type, Tell] = {
        known.TensorBoardCallback: _tensorboard,
        known.WandbCallback: _wandb,
        known.TrackioCallback: _trackio,
    }
    others = tuple(kind for kind in known.INTEGRATION_TO_CALLBACK.values() if kind not in own)
    for callback in callbacks:
        tell = next((tell for kind, tell in own.items() if isinstance(callback, kind)), None)
        if tell is not None:
            yield callback, tell
        elif isinstance(callback, others):
            yield callback, _logged


def _tensorboard(callback: Any, trainer: Any, report: SpeedupReport, page: str | None) -> None:
    writer = callback.tb_writer
    if writer is None:
        return
    step = trainer.state.global_step
    for name, value in scalars(report).items():
        writer.add_scalar(name, value, step)
    if page is not None:
        writer.add_text(f"{PREFIX}report", markdown(report), step)
    writer.flush()


def _wandb(callback: Any, trainer: Any, report: SpeedupReport, page: str | None) -> None:
    import wandb

    if wandb.run is None:
        return
    found: dict[str, Any] = {**scalars(report), "train/global_step": trainer.state.global_step}
    wandb.run.summary.update(scalars(report))
    if page is not None:
        found[f"{PREFIX}report"] = wandb.Html(page, inject=False)
    wandb.log(found)


def _trackio(callback: Any, trainer: Any, report: SpeedupReport, page: str | None) -> None:
    import trackio

    found: dict[str, Any] = {**scalars(report), "train/global_step": trainer.state.global_step}
    if page is not None:
        found[f"{PREFIX}report"] = trackio.Markdown(markdown(report))
    trackio.log(found)


def _logged(callback: Any, trainer: Any, report: SpeedupReport, page: str | None) -> None:
    if page is not None:
        callback.on_log(trainer.args, trainer.state, trainer.control, logs=scalars(report), model=trainer.model)
