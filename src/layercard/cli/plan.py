"""`layercard plan`: choose layers before any training, write placement.json, or check that the choice still holds."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from layercard.cli.help import Command, examples
from layercard.cli.memory_options import memory_asked, memory_options
from layercard.cli.options import (
    CONTEXT,
    data_options,
    data_source,
    model_options,
    model_source,
    output_options,
    settings_from,
    settings_options,
    target_modules,
)
from layercard.cli.output import Output, starting
from layercard.cli.writable import refuse_unwritable
from layercard.errors import EXIT_CHECK_FAILED
from layercard.placement.placement import LayerPlacement
from layercard.settings import PlacementSettings

TRAINING_ONLY = {
    "measure", "measure_budget", "guard", "on_quality_loss", "quality_threshold", "guard_budget", "prefix_cache", "control",
}  # fmt: skip
"""Settings of a training run that change neither the choice nor the prediction."""
SETTINGS = [field.name for field in fields(PlacementSettings) if field.name not in TRAINING_ONLY]
FILE = click.Path(path_type=Path, dir_okay=False)
AS_WRITTEN = "-"
"""What `--check` holds where no path follows: the file that `-o` names."""


@click.command(
    cls=Command,
    context_settings=CONTEXT,
    epilog=examples(
        "layercard plan Qwen/Qwen3-0.6B",
        "layercard plan ./model --dataset data.jsonl --lora-layers high",
        "layercard plan ./model --dataset data.jsonl -o placement.json --check",
    ),
)
@model_options
@data_options(required=False)
@settings_options(SETTINGS)
@click.option(
    "--gradient-checkpointing/--no-gradient-checkpointing",
    "checkpointing",
    default=True,
    show_default=True,
    help="Whether the training run will use it; changes the prediction alone.",
)
@click.option(
    "--time-costs/--no-time-costs",
    default=True,
    show_default=True,
    help="Time a layer, its adapters and the head for the prediction, or estimate them from parameters.",
)
@memory_options
@click.option("-o", "--output", "path", type=FILE, help="Write placement.json here.")
@click.option(
    "--check",
    is_flag=False,
    flag_value=AS_WRITTEN,
    metavar="[PATH]",
    help="Write nothing; exit with 3 where the choice differs from this placement.json (default: that of -o).",
)
@output_options
@click.pass_context
def plan(
    context: click.Context,
    checkpointing: bool,
    time_costs: bool,
    path: Path | None,
    check: str | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Choose which layers of MODEL (a folder or a Hub id) to adapt. Reads the dataset only where a score needs it."""
    memory = memory_asked(values)
    model, data, settings = model_source(values), data_source(values), settings_from(values)
    saved_path = _saved_path(path, check)
    refuse_unwritable(path if saved_path is None else None, "--output")
    saved = None if saved_path is None else LayerPlacement.load(saved_path)
    with starting():
        from layercard.cli.loading import settled
        from layercard.cli.planning import make_plan
    from layercard.cli.next_steps import Training, say_plan_next

    output = Output(as_json=as_json)
    model = settled(model, data, output.say)
    run: dict[str, Any] = {"checkpointing": checkpointing, "time_costs": time_costs, "memory": memory}
    made = make_plan(model, data, settings, target_modules(values), output, **run)
    made.show(output)
    if saved_path is not None and saved is not None:
        _check(context, output, made.document(), saved_path, saved, made.placement)
    if path is not None:
        made.placement.save(path)
        output.say(f"Wrote {path}.")
    language = model.purpose is not None and model.purpose.task == "causal"
    training = Training(
        settings.layers_path, settings.other_stacks, target_modules(values), language, schedule=settings.schedule
    )
    say_plan_next(output, made.placement, path, training)
    output.finish(made.document())


def _saved_path(path: Path | None, check: str | None) -> Path | None:
    if check is None:
        return None
    if check != AS_WRITTEN:
        return Path(check)
    if path is None:
        raise click.UsageError("`--check` compares with a placement.json. Name it, or give `-o`.")
    return path


def _check(
    context: click.Context,
    output: Output,
    document: dict[str, Any],
    path: Path,
    saved: LayerPlacement,
    chosen: LayerPlacement,
) -> None:
    """Say whether the choice is still the saved one and end the command with 0 or 3.

    Layers that changed end it with 3. Where only what they were chosen for changed (model, data, settings), that is said,
    and the placement still holds.
    """
    from layercard.cli.planning import difference
    from layercard.cli.recording import other_record

    found, other = difference(saved, chosen), other_record(saved, chosen)
    output.say(f"{path} still holds." if found is None else f"{path} no longer holds: {found}.")
    if found is not None:
        output.say(
            "Train with it all the same, or write the new choice: the same command with `-o`, without `--check`."
        )
    for line in other:
        output.say(f"Since it was chosen, {line}.")
    if saved.made_for is None:
        output.say(f"{path} has no record of what it was chosen for; write it again with `-o` to have one.")
    output.finish(
        document | {"check": {"path": str(path), "same": found is None, "difference": found, "chosen_for": other}}
    )
    context.exit(0 if found is None else EXIT_CHECK_FAILED)
