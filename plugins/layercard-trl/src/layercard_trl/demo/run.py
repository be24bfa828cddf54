"""The demo's order of events: model, data, three trainings, one table.

The three differ only by the layers they adapt: those that `auto` chooses, the last five, and all of them. Everything
that is written stands in one folder, a sub-folder a run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from layercard_trl.demo.docstrings import docstring_examples
from layercard_trl.demo.model import NAME, demo_model

if TYPE_CHECKING:
    from layercard_trl.demo.training import Recipe, TrainedRun

TITLES = {
    "auto": "layers chosen by `auto`",
    "last-5": "the last 5 layers",
    "all-layers": "all-layer LoRA",
}
TIMED_STEPS = 23
"""How long timing and the guard's trial may take in a run, in steps: six rounds or so, without splitting the saving."""


@dataclass(frozen=True)
class Size:
    """How much the demo trains and judges."""

    steps: int
    batch_size: int
    heldout: int


SIZES = {
    "bfloat16": {"full": Size(steps=48, batch_size=8, heldout=64), "quick": Size(steps=16, batch_size=8, heldout=32)},
    "float32": {"full": Size(steps=40, batch_size=4, heldout=48), "quick": Size(steps=16, batch_size=4, heldout=24)},
}
"""By the dtype that is fast on this machine: where it is float32, a step takes longer and there are fewer."""


@dataclass(frozen=True)
class DemoOptions:
    """What the command line says. `steps` None leaves them to the demo (`SIZES`)."""

    quick: bool = False
    qlora: bool = False
    steps: int | None = None
    output_dir: Path = Path("layercard-demo")


def run_demo(options: DemoOptions, console: Console) -> dict[str, Any]:
    """Run the demo, print its tables to `console`, and return what demo.json in the output folder holds.

    Raises `ModelError` where the model cannot be had, `DataError` where this Python lacks its sources.
    """
    from layercard.placement.placement import write_json

    recipe = _recipe(options, console.print)
    runs: dict[str, TrainedRun] = {}
    before: float | None = None
    for number, (name, title) in enumerate(TITLES.items(), start=1):
        console.rule(f"{number} of {len(TITLES)}: {title}, {recipe.steps} steps")
        settings = _settings(name, options, recipe.steps)
        runs[name] = _one_run(recipe, options.output_dir / name, settings, before)
        before = runs[name].loss_before
    document = _document(options, recipe, runs)
    write_json(options.output_dir / "demo.json", document)
    _show(console, recipe, runs, options.output_dir)
    return document


def _recipe(options: DemoOptions, say: Callable[[str], None]) -> Recipe:
    import torch

    from layercard.precision import fast_dtype, name_of, slow_on
    from layercard_trl.demo.training import Recipe

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = fast_dtype(device, torch.bfloat16)
    size = SIZES[name_of(dtype)]["quick" if options.quick else "full"]
    steps = options.steps or size.steps
    train, heldout = docstring_examples(steps * size.batch_size, size.heldout)
    model = demo_model(say)
    if (reason := slow_on(device, torch.bfloat16)) is not None:
        say(f"{reason} The demo trains in float32, and less of it.")
    say(
        f"{NAME} learns to summarise functions: {len(train)} signatures of Python's standard library with the first line "
        f"of their docstrings, {len(heldout)} more held out."
    )
    return Recipe(model, train, heldout, steps, size.batch_size, dtype, qlora=options.qlora)


def _settings(name: str, options: DemoOptions, steps: int) -> dict[str, Any] | None:
    """Return what `lora_layers` is in the run of this name, None for every layer."""
    budget = min(0.5, TIMED_STEPS / steps)
    timing: dict[str, Any] = {"measure_budget": budget, "guard_budget": budget}
    if name == "auto":
        return {"lora_layers": "auto", **timing}
    if name == "last-5":  # its all-layer steps would take too long of a quick demo
        tried = not options.quick
        return {"strategy": "last", "num_layers": 5, "measure": tried, "guard": tried, **timing}
    return None


def _one_run(recipe: Recipe, output: Path, lora_layers: dict[str, Any] | None, loss_before: float | None) -> TrainedRun:
    from layercard_trl.demo.training import train

    output.mkdir(parents=True, exist_ok=True)
    for earlier in ("placement.json", "report.json"):  # those of an earlier demo, so that a broken one shows
        (output / earlier).unlink(missing_ok=True)
    return train(recipe, output, lora_layers, loss_before)


def _document(options: DemoOptions, recipe: Recipe, runs: dict[str, TrainedRun]) -> dict[str, Any]:
    from layercard_trl.demo.table import comparison

    auto = runs["auto"].placed
    assert auto is not None
    return {
        "placement": auto.placement.to_dict(),
        "report": auto.report.to_dict(),
        "heldout_loss": {"before": runs["auto"].loss_before, "after": runs["auto"].loss_after},
        "comparison": comparison(runs),
        "model": NAME,
        "steps": recipe.steps,
        "qlora": options.qlora,
    }


def _show(console: Console, recipe: Recipe, runs: dict[str, TrainedRun], folder: Path) -> None:
    from layercard_trl.demo.table import comparison_table

    console.rule("What it saves and what it costs")
    console.print(comparison_table(runs, steps=recipe.steps))
    console.print(
        "Steps, batches and first adapter values are the same in every run. Speedup is of a training step against "
        "all-layer LoRA, measured inside the run. Steps of both took turns; `observed` compares whole runs. Fewer layers "
        "are faster and learn less in as many steps: read both columns."
    )
    console.print(f"Adapters, placement.json and report.html are in {folder}/.")
    console.print("Next: choose layers for a model and data of your own.")
    console.print("  layercard plan MODEL --dataset DATA")
