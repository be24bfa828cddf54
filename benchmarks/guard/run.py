"""What the guard's trial says at the start of a run, beside what the placement kept at its end, and what the trial costs.

    python benchmarks/prepare_data.py --data DATA --out PREPARED --names e2e gsm8k arc_easy
    python benchmarks/guard/ground_truth.py --data PREPARED --write      # hours, once; kept in results/
    python benchmarks/guard/run.py --data PREPARED [--quick] [--write]

The guard itself runs in real TRL trainers, as by default 3% of the planned steps; training is stopped after its first
step, and the end of the run is read from results/guard-ground-truth.json. `calibration` asks the same of the early losses
of the whole runs, where every number of steps is known.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

import layercard
from layercard.quality.calibration import log_factor
from layercard.quality.share import share_kept

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from common import RESULTS, arguments, report
from curves import Pair, fitted, gain, left_out, spearman, warnings
from runs import ALL_LAYERS, PLACEMENTS, Lab, Recipe, smoke, smollm2, trainer

BUDGET = 0.03
PLANNED = 500
"""Planned steps of the runs that are begun: 3% of 500 pay for a trial of four or five, of 200 for none. The ends are those of
the runs of 200 steps."""
THRESHOLDS = (0.8, 0.85, 0.9, 0.95)
CLOCKED_STEPS = 8
SETTINGS: dict[str, dict[str, Any]] = {
    "guard and timing": {},
    "timing alone": {"guard": False},
    "neither": {"guard": False, "measure": False},
}
Runs = dict[tuple[str, float], dict[str, dict[str, Any]]]


class Stop(TrainerCallback):
    """Ends the training after some steps and clocks them."""

    def __init__(self, steps: int) -> None:
        self.steps, self.seconds, self._began = steps, [], 0.0  # type: ignore[var-annotated]

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock, and the training."""
        self.seconds.append(time.perf_counter() - self._began)
        control.should_training_stop = len(self.seconds) >= self.steps


def trial(recipe: Recipe, placement: str, lab: Lab) -> dict[str, Any]:
    """Return what the guard says of a placement when a run of this recipe begins."""
    with tempfile.TemporaryDirectory() as folder:
        sft = trainer(recipe, lab, folder)
        run = layercard.place(sft, lora_layers=list(PLACEMENTS[placement]), measure=False, guard_budget=BUDGET)
        sft.add_callback(Stop(1))
        sft.train()
    return dict(run.report.quality)


def ground_truth() -> Runs:
    """Return the whole runs that are kept, by data set and rate, then by placement; those with an all-layer arm."""
    path = RESULTS / "guard-ground-truth.json"
    kept: Runs = {}
    for found in json.loads(path.read_text())["results"]:
        kept.setdefault((found["data"], found["rate"]), {})[found["placement"]] = found
    return {key: arms for key, arms in kept.items() if ALL_LAYERS in arms}


def shares(arms: dict[str, dict[str, Any]], placement: str) -> dict[int, Any]:
    """Return the share that a placement kept after each step at which both arms were looked at."""
    full, placed = (arms[name]["heldout_losses"] for name in (ALL_LAYERS, placement))
    return {int(step): share_kept(full["0"], full[step], placed[step]) for step in placed}


def early_pairs(runs: Runs) -> list[Pair]:
    """Return every placement's share after each step that was looked at, beside the one at the end."""
    pairs = []
    for (data, rate), arms in runs.items():
        for name in arms.keys() - {ALL_LAYERS}:
            found = shares(arms, name)
            end = found.pop(max(found))
            pairs += [Pair(data, rate, name, n, s.value, end.value) for n, s in found.items() if s.value is not None]
    return sorted(pairs, key=lambda pair: (pair.steps, pair.run, pair.placement))


def calibration(runs: Runs) -> dict[str, Any]:
    """Return how well early shares tell the end, as they are and with odds times K, K fitted on the other runs."""
    pairs = early_pairs(runs)
    predicted = left_out(pairs, pairs)
    rows = [
        {"data": p.data, "rate": p.rate, "placement": p.placement, "steps": p.steps}
        | {"share": round(p.early, 3), "predicted": round(q, 3), "end": round(p.end, 3), "log K": round(gain(p), 2)}
        for p, q in zip(pairs, predicted, strict=True)
    ]
    by_steps = {n: [i for i, p in enumerate(pairs) if p.steps == n] for n in sorted({p.steps for p in pairs})}
    return {
        "log K by steps times rate": {f"{d:g}": round(k, 2) for d, k in fitted(pairs).items()},
        "log K less the shipped factor (rms)": _rms(
            [gain(p) for p in pairs], [log_factor(p.steps, p.rate) for p in pairs]
        ),
        "by steps": {
            str(n): {
                "as it is": judged([pairs[i].early for i in at], [pairs[i] for i in at]),
                "predicted from other runs": judged([predicted[i] for i in at], [pairs[i] for i in at]),
            }
            for n, at in by_steps.items()
        },
        "rows": rows,
    }


def judged(values: list[float], pairs: list[Pair]) -> dict[str, Any]:
    """Return how well shares tell the ends, in value, rank and warnings."""
    ends = [pair.end for pair in pairs]
    return {
        "placements": len(pairs),
        "error": _rms(values, ends),
        "rank correlation": spearman(values, ends),
        "warnings": {str(t): dict(warnings(values, pairs, t)) for t in THRESHOLDS},
    }


def _rms(values: list[float], truths: list[float]) -> float | None:
    squares = [(a - b) ** 2 for a, b in zip(values, truths, strict=True)]
    return round(statistics.fmean(squares) ** 0.5, 3) if squares else None


def trials(runs: Runs, lab: Lab) -> list[dict[str, Any]]:
    """Run the guard for every placement whose end is known, and return what it said beside it."""
    rows = []
    for (data, rate), arms in runs.items():
        for name in [n for n in arms if n != ALL_LAYERS]:
            quality = trial(Recipe(data, rate, PLANNED), name, lab)
            found = shares(arms, name)
            end = found[max(found)]
            rows.append(
                {
                    "data": data,
                    "rate": rate,
                    "placement": name,
                    "said": {key: quality.get(key) for key in SAID},
                    "end": [round(x, 3) for x in (end.value, end.low, end.high)],
                }
            )
            sys.stderr.write(f"{rows[-1]}\n")
    return rows


SAID = (
    "share_kept", "interval", "share_in_trial", "interval_in_trial", "steps", "examples", "seconds",
    "learning_rate_hint", "reaction", "reason",
)  # fmt: skip


FITTED = {
    ("e2e", 2e-4, "last 5"), ("e2e", 2e-4, "middle 5"), ("e2e", 2e-4, "upper half"),
    ("e2e", 2e-4, "uniform third, upper two thirds"), ("e2e", 1e-3, "last 5"), ("gsm8k", 2e-4, "last 5"),
}  # fmt: skip
"""The placements that the guard's constants were fitted on; all others were run to the end afterwards."""


def said(rows: list[dict[str, Any]], runs: Runs) -> dict[str, Any]:
    """Return how often the guard's own number warned rightly, wrongly, not at all, at each threshold: of all placements, of
    those that its constants were not fitted on, and with constants fitted on the other runs; and how many ends lie within
    the guard's interval.
    """
    known = [row for row in rows if row["said"]["share_kept"] is not None]
    unseen = [row for row in known if (row["data"], row["rate"], row["placement"]) not in FITTED]
    trials = [_pair(row, "share_in_trial") for row in known]
    return {
        "without a number": len(rows) - len(known),
        "as shipped": _judged_rows(known),
        "as shipped, not fitted on": _judged_rows(unseen),
        "fitted on the other runs": judged(left_out(trials, early_pairs(runs)), trials) if len(runs) > 1 else None,
        "ends within the interval": sum(
            r["said"]["interval"][0] <= r["end"][0] <= r["said"]["interval"][1] for r in known
        ),
    }


def _pair(row: dict[str, Any], share: str) -> Pair:
    return Pair(row["data"], row["rate"], row["placement"], row["said"]["steps"], row["said"][share], row["end"][0])


def _judged_rows(rows: list[dict[str, Any]]) -> dict[str, Any]:
    pairs = [_pair(row, "share_kept") for row in rows]
    return judged([pair.early for pair in pairs], pairs)


def cost(lab: Lab, *, clocked: int) -> dict[str, Any]:
    """Return what guard and timing add to a run at their defaults, as shares of the seconds of all its steps."""
    found = {}
    for name, settings in SETTINGS.items():
        with tempfile.TemporaryDirectory() as folder:
            sft = trainer(Recipe("e2e", 2e-4, PLANNED), lab, folder)
            run = layercard.place(sft, lora_layers=list(PLACEMENTS["uniform third, upper two thirds"]), **settings)
            stop = Stop(clocked)
            sft.add_callback(stop)
            sft.train()
        whole = statistics.median(stop.seconds[1:]) * PLANNED
        found[name] = {
            "share of the run": round(run.report.overhead_seconds / (whole + run.report.overhead_seconds), 4),
            "overhead in steps": _in_steps(run.report, stop.seconds),
            "trial steps": run.report.quality.get("steps"),
            "held-out examples": run.report.quality.get("examples"),
        }
    return {"planned steps": PLANNED, **found}


def _in_steps(found: Any, placed_seconds: list[float]) -> dict[str, float | None]:
    """Return the overhead in placed and, where those were timed, all-layer micro-batch steps."""
    every, placed = found.baseline.step_seconds, statistics.median(placed_seconds[1:])
    return {
        "placed": round(found.overhead_seconds / placed, 1),
        "all-layer": None if every is None else round(found.overhead_seconds / every, 1),
    }


def main() -> None:
    """Calibrate, try, and price."""
    parser: argparse.ArgumentParser = arguments(__doc__ or "")
    parser.add_argument("--data", type=Path, help="folder that prepare_data.py wrote; `--quick` does without")
    args = parser.parse_args()
    if args.data is None and not args.quick:
        parser.error("give --data, the folder that benchmarks/prepare_data.py wrote, or --quick")
    torch.set_num_threads(args.threads)
    runs = ground_truth()
    result: dict[str, Any] = {"early shares of whole runs": calibration(runs)}
    with tempfile.TemporaryDirectory() as folder:
        lab = smoke(Path(folder)) if args.quick else smollm2(args.data)
        if args.quick:
            key = next(iter(runs))
            runs = {key: {name: runs[key][name] for name in list(runs[key])[:2]}}
        rows = trials(runs, lab)
        result["trials"] = {"planned steps": PLANNED, **said(rows, runs), "rows": rows}
        result["cost"] = cost(lab, clocked=3 if args.quick else CLOCKED_STEPS)
    report("guard", args, result)


if __name__ == "__main__":
    main()
