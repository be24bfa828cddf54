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

RUNS = {
    "auto": ("layers chosen by `auto`", "auto"),
    "last-5": ("the last 5 layers", {"strategy": "last", "num_layers": 5}),
    "all-layers": ("all-layer LoRA", None),
}


@dataclass(frozen=True)
class DemoOptions:
    """What the command line says. `steps` None leaves them to the demo: 60, or 16 with `quick`."""

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
    runs = {}
    for number, (name, (title, lora_layers)) in enumerate(RUNS.items(), start=1):
        console.rule(f"{number} of {len(RUNS)}: {title}, {recipe.steps} steps")
        runs[name] = _one_run(recipe, options.output_dir / name, lora_layers)
    document = _document(options, recipe, runs)
    write_json(options.output_dir / "demo.json", document)
    _show(console, recipe, runs, options.output_dir)
    return document


def _recipe(options: DemoOptions, say: Callable[[str], None]) -> Recipe:
    from layercard_trl.demo.training import Recipe

    steps = options.steps or (16 if options.quick else 60)
    batch_size = 8
    train, heldout = docstring_examples(steps * batch_size, 48 if options.quick else 96)
    model = demo_model(say)
    say(
        f"{NAME} learns to summarise functions: {len(train)} signatures of Python's standard library with the first line "
        f"of their docstrings, {len(heldout)} more held out."
    )
    return Recipe(
        model, train, heldout, steps, batch_size, qlora=options.qlora, measure_budget=0.4 if options.quick else 0.2
    )


def _one_run(recipe: Recipe, output: Path, lora_layers: Any) -> TrainedRun:
    from layercard_trl.demo.training import train

    output.mkdir(parents=True, exist_ok=True)
    for earlier in ("placement.json", "report.json"):  # a placement that stands there would be used again
        (output / earlier).unlink(missing_ok=True)
    return train(recipe, output, lora_layers, measure_before=lora_layers == "auto")


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
        "The same steps, batches and first adapter values in every run; speedup is of a training step, against all-layer "
        "LoRA in the same run. Fewer layers train faster and learn less in as many steps: read both columns."
    )
    console.print(f"Adapters, placement.json and report.json are in {folder}/.")
