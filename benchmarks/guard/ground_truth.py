"""How much of all-layer LoRA's gain placements keep at the end of whole runs, and at each of their early steps.

    python benchmarks/prepare_data.py --data DATA --out PREPARED --names e2e gsm8k arc_easy
    python benchmarks/guard/ground_truth.py --data PREPARED [--quick] [--write]

`--write` keeps results/guard-ground-truth.json, rewritten after every arm; arms that stand there are not run again. Before
training all arms of a data set are one model, so only the all-layer arm looks at step 0.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

import layercard
from layercard.files import write_text

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from common import RESULTS, arguments, machine
from runs import ALL_LAYERS, PLACEMENTS, TASKS, Lab, Recipe, heldout_losses, smollm2, trainer

STEPS = 200
POINTS = (2, 4, 8, 16, 32)
ORDER = (("e2e", 2e-4), ("e2e", 1e-3), ("gsm8k", 2e-4), ("arc_easy", 2e-4), ("gsm8k", 1e-3), ("arc_easy", 1e-3))
TIERS = ((ALL_LAYERS, "last 5"), ("uniform third, upper two thirds",), ("middle 5", "upper half", "uniform third"))


class Watch(TrainerCallback):
    """Takes held-out losses after the given steps and clocks the steps between."""

    def __init__(self, sft: Any, points: tuple[int, ...]) -> None:
        self.sft, self.points = sft, points
        self.losses: dict[str, list[float]] = {}
        self.seconds = self._began = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock; before the first step, look at the model as it comes."""
        if state.global_step == 0 and 0 in self.points:
            self.losses["0"] = heldout_losses(self.sft)
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock; look where asked, and at the end."""
        self.seconds += time.perf_counter() - self._began
        if state.global_step in self.points or state.global_step == state.max_steps:
            self.losses[str(state.global_step)] = heldout_losses(self.sft)


def run(recipe: Recipe, placement: str, lab: Lab, points: tuple[int, ...]) -> dict[str, Any]:
    """Train one arm and return its losses."""
    with tempfile.TemporaryDirectory() as folder:
        sft = trainer(recipe, lab, folder)
        if placement != ALL_LAYERS:
            layercard.place(sft, lora_layers=list(PLACEMENTS[placement]), measure=False, guard=False)
        watch = Watch(sft, points)
        sft.add_callback(watch)
        sft.train()
    train_losses = [round(row["loss"], 4) for row in sft.state.log_history if "loss" in row]
    return {
        **asdict(recipe),
        "placement": placement,
        "layers": list(PLACEMENTS[placement]),
        "step_seconds": round(watch.seconds / recipe.steps, 3),
        "train_losses": train_losses,
        "heldout_losses": watch.losses,
    }


def plan(quick: bool) -> list[tuple[Recipe, str, tuple[int, ...]]]:
    """Return the arms in the order of running, the most telling and cheapest first, so that what is there at any time is
    worth reading. Only all-layer arms look before training.
    """
    if quick:
        return [(Recipe("e2e", 2e-4, 3), name, (0, 1)) for name in (ALL_LAYERS, "last 5")]
    arms = [(Recipe(data, rate, STEPS), p) for tier in TIERS for data, rate in ORDER for p in tier]
    return [(recipe, p, (0, *POINTS) if p == ALL_LAYERS else POINTS) for recipe, p in arms]


def key(run: dict[str, Any]) -> tuple[Any, ...]:
    """Return what tells arms apart."""
    return tuple(run[name] for name in ("data", "rate", "steps", "schedule", "warmup", "seed", "placement"))


def save(path: Path, runs: list[dict[str, Any]]) -> None:
    """Write the document, a run a line, and put it in place at once."""
    head = {"benchmark": "guard-ground-truth", "quick": False, "machine": machine()}
    head |= {
        "tasks": {name: asdict(task) for name, task in TASKS.items()},
        "heldout_examples": len(runs[0]["heldout_losses"]["0"]),
    }
    lines = ",\n".join(json.dumps(run) for run in runs)
    write_text(path, f'{json.dumps(head)[:-1]}, "results": [\n{lines}\n]}}\n')


def main() -> None:
    """Run what is missing."""
    parser: argparse.ArgumentParser = arguments(__doc__ or "")
    parser.add_argument("--data", type=Path, required=True, help="folder that prepare_data.py wrote")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    path = RESULTS / "guard-ground-truth.json"
    kept = args.write and not args.quick
    runs: list[dict[str, Any]] = json.loads(path.read_text())["results"] if kept and path.exists() else []
    lab = smollm2(args.data)
    done = {key(r) for r in runs}
    for recipe, placement, points in plan(args.quick):
        if key({**asdict(recipe), "placement": placement}) in done:
            continue
        runs.append(run(recipe, placement, lab, points))
        sys.stderr.write(f"{recipe} {placement}: {runs[-1]['step_seconds']} s a step\n")
        if kept:
            save(path, runs)
    shown = [{k: v for k, v in r.items() if k != "heldout_losses"} for r in runs]
    sys.stdout.write(json.dumps({"benchmark": "guard-ground-truth", "quick": args.quick, "results": shown}) + "\n")


if __name__ == "__main__":
    main()
