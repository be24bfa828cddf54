"""Reports as runs write them, with every number made up; for tests of what is shown of them."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from layercard.cost.speedup import Saving, SpeedupReport, StepCost
from layercard.report.verdict import verdict_of

TOO_SHORT = "The run is too short: 2.0% of its 20 planned steps cannot pay for timing."
QUALITY: dict[str, Any] = {
    "kind": "predicted",
    "share_kept": 0.97,
    "interval": [0.92, 0.99],
    "share_in_trial": 0.61,
    "interval_in_trial": [0.55, 0.68],
    "threshold": 0.9,
    "heldout_loss": {"before": 4.37, "all_layers": 3.9, "placed": 4.0, "placed_2x": 3.95},
    "examples": 32,
    "heldout_from": "eval_dataset",
    "steps": 4,
    "planned_steps": 400,
    "final_heldout_loss": 2.711,
    "reason": None,
}
EXPECTED = {"outcome": "uniform", "metric": "heldout_loss", "share_kept": 0.96, "lowest_share_kept": 0.94}


def full_report(num_layers: int = 30, **changes: Any) -> SpeedupReport:
    """Return the report of a run that was timed, tried out and chosen by a Layer Card."""
    drawn = random.Random(num_layers)
    layers = tuple(range(num_layers // 2, num_layers, 2))
    placed = [1.0 + drawn.random() / 10 for _ in range(20)]
    phases = {"forward": 0.2, "recompute": 0.2, "backward": 0.2, "adapters": 0.3, "head": 0.1}
    report = SpeedupReport(
        layers=layers,
        num_layers=num_layers,
        step_speedup=1.94,
        interval=(1.9, 2.01),
        interval_coverage=0.96,
        pairs=20,
        end_to_end_speedup=1.81,
        baseline=StepCost(2.0, 2**33, 40_000_000, 0.1),
        placed=StepCost(1.03, 2**32, 20_000_000, 0.08),
        quality=QUALITY,
        probe_seconds=6.2,
        overhead_seconds=31.0,
        break_even_steps=39,
        observed_step_seconds=1.1,
        planned_steps=400,
        steps_run=400,
        micro_batches=400,
        backward_layers=layers,
        gradient_entry={"moved": True},
        prefix_cache={"on": True},
        saving=Saving(0.12, 0.36, None),
        memory_method="counted",
        versions={"layercard": "0.1.0", "torch": "2.13.0"},
        run={
            "model": {"id": "HuggingFaceTB/SmolLM2-135M-Instruct", "revision": "abc123"},
            "data": {"name": "trl-lib/Capybara", "split": "train", "rows": 15806, "digest": "0011223344556677"},
            "adapter": {"target_modules": ["q_proj", "v_proj"], "rank": 16, "alpha": 32, "dropout": 0.0},
            "training": {"learning_rate": 2e-4, "micro_batches_a_step": 1, "gradient_checkpointing": True},
            "device": {"type": "cpu", "name": None, "threads": 2},
            "started": "2025-01-02T03:04:05Z",
            "ended": "2025-01-02T03:24:05Z",
            "command": "layercard trl-sft --lora_layers auto",
        },
        placement={
            "strategy": "auto",
            "score": "resnorm",
            "reason": "`auto` leaning to quality",
            "cards": ["smollm2-135m-instruct/e2e"],
            "expected": EXPECTED,
            "digest": "aabbccdd",
        },
        scores={name: [drawn.random() for _ in range(num_layers)] for name in ("resnorm", "activation")},
        predicted={"step_speedup": 1.7, "phases": {"baseline": phases, "placed": phases | {"backward": 0.1}}},
        timing={"baseline": [2.0 + drawn.random() / 10 for _ in range(20)], "placed": placed},
        seconds_saved=356.2,
        unavailable={"saving.prefix_cache": "Cached steps were not timed.", "phases": "Phases are not timed apart."},
        partial=False,
    )
    return told(replace(report, **changes))


def short_report(**changes: Any) -> SpeedupReport:
    """Return the report of a run that was too short for timing and trial."""
    bare = SpeedupReport(
        layers=(1, 3),
        num_layers=4,
        quality={"kind": "unknown", "reason": "The run is too short for a trial."},
        overhead_seconds=0.3,
        partial=False,
    )
    return told(replace(bare, **({"unavailable": dict.fromkeys(bare.unexplained(), TOO_SHORT)} | changes)))


def told(report: SpeedupReport) -> SpeedupReport:
    """Return the report with its verdict in it, as a run writes it."""
    return replace(report, verdict=verdict_of(report).to_dict())
