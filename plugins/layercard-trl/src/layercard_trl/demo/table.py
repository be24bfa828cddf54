"""The demo's table: speedup and held-out loss of every run, in the same row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table

from layercard.anatomy.layers import describe

if TYPE_CHECKING:
    from layercard_trl.demo.training import TrainedRun

BASELINE = "all-layers"


def comparison(runs: Mapping[str, TrainedRun]) -> list[dict[str, Any]]:
    """Return a row for each run: its layers, speedups, step time, parameters and held-out loss.

    `step_speedup` is measured inside the run, baseline and placed steps alternating; `observed_speedup` compares the
    median step times of whole runs, one after another. Either is None where it is not known.
    """
    return [_row(name, run, runs) for name, run in runs.items()]


def _row(name: str, run: TrainedRun, runs: Mapping[str, TrainedRun]) -> dict[str, Any]:
    placed = run.placed
    return {
        "run": name,
        "layers": list(placed.placement.layers) if placed else None,
        "step_speedup": placed.report.step_speedup if placed else 1.0,
        "observed_speedup": runs[BASELINE].step_seconds / run.step_seconds,
        "step_seconds": run.step_seconds,
        "trainable_parameters": run.trainable_parameters,
        "heldout_loss": run.loss_after,
    }


def comparison_table(runs: Mapping[str, TrainedRun], *, steps: int) -> Table:
    """Return the table for the console; losses are mean negative log-likelihood a token, in nats."""
    before = runs[BASELINE].loss_before
    table = Table(title=f"Held-out loss {before:.3f} before training, {steps} steps")
    for heading in ("run", "layers adapted"):
        table.add_column(heading)
    for heading in ("trainable", "s / step", "speedup", "held-out loss"):
        table.add_column(heading, justify="right")
    for row, run in zip(comparison(runs), runs.values(), strict=True):
        table.add_row(*_cells(row, run))
    return table


def _cells(row: dict[str, Any], run: TrainedRun) -> list[str]:
    layers = describe(run.placed.placement.layers, run.placed.placement.num_layers) if run.placed else "all"
    measured = row["step_speedup"]
    speedup = f"{measured:.2f}x" if measured is not None else f"{row['observed_speedup']:.2f}x observed"
    return [
        row["run"],
        layers,
        f"{row['trainable_parameters'] / 1e6:.2f} M",
        f"{row['step_seconds']:.2f}",
        speedup,
        f"{row['heldout_loss']:.3f}",
    ]
