"""`layercard compare`: runs and Layer Cards beside each other: speedup, performance drop, and their ratio."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from layercard.cli.help import Command, examples
from layercard.cli.next_steps import say_next
from layercard.cli.options import CONTEXT, output_options
from layercard.cli.output import Output

MEANING = (
    "Speedup and performance drop are against all-layer LoRA, in percent; a negative drop is a gain.\n"
    "The ratio is speedup over drop: higher is better."
)


@click.command(
    cls=Command, context_settings=CONTEXT, epilog=examples("layercard compare out-last5 out-auto --format csv")
)
@click.argument("runs", metavar="RUN…", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--format", "form", type=click.Choice(["markdown", "csv", "json"]), default="markdown", show_default=True,
    help="How the table is printed.",
)  # fmt: skip
@output_options
def compare(runs: tuple[Path, ...], form: str, as_json: bool) -> None:
    """Print speedup, performance drop and their ratio of every RUN: an output folder, a report.json or a Layer Card."""
    from layercard.report.tradeoff import as_csv, as_markdown, read_tradeoffs

    output = Output(as_json=as_json or form == "json")
    rows = read_tradeoffs(runs)
    if form == "csv":
        output.say(as_csv(rows).rstrip("\n"))
    else:
        output.say(as_markdown(rows))
        output.say(MEANING)
        unproven = [row.name for row in rows if row.evidence == "unproven"]
        if unproven:
            output.say(f"Quality is unproven in {', '.join(unproven)}; `layercard report` says why.")
        say_next(output, "see one of them whole.", "  layercard report RUN", "  layercard cards show CARD")
    output.finish({"runs": [asdict(row) for row in rows]})
