"""`layercard cards list`: every Layer Card that can be found, and every file that was refused."""

from __future__ import annotations

from typing import Any

import click
from rich.table import Table
from rich.text import Text

from layercard import plugins
from layercard.cli.cards.words import LEGEND, UNKNOWN, kept, say_refused, speed, summary
from layercard.cli.help import Command, examples
from layercard.cli.next_steps import MATCH, say_next
from layercard.cli.options import CONTEXT, output_options
from layercard.cli.output import Output


@click.command(
    "list",
    cls=Command,
    context_settings=CONTEXT,
    epilog=examples("layercard cards list --model smollm2 --kind measured"),
)
@click.option("--model", help="Only cards whose model's id holds this text.")
@click.option("--dataset", help="Only cards whose dataset's id holds this text.")
@click.option("--kind", type=click.Choice(["measured", "published"]), help="Only cards of this provenance.")
@output_options
def list_cards(model: str | None, dataset: str | None, kind: str | None, as_json: bool) -> None:
    """List Layer Cards: those shipped, those of plugins, and your own."""
    from layercard.cards.library import Library, default_user_dir

    output, library = Output(as_json=as_json), Library.open(plugins.card_folders())
    wanted = {"model": model, "dataset": dataset, "kind": kind}
    listed = [row for row in map(summary, library.cards) if _asked_for(row, wanted)]
    if listed:
        output.console.print(_table(listed))
    output.say(f"{len(listed)} of {len(library.cards)} cards. Your own: {default_user_dir()}")
    if listed:
        output.say(f"best: the set of layers, not all, that did best in the card's main metric.\n{LEGEND}")
        output.say(
            "Published cards inform. Measured ones can match a run: those reproduced, or `community` ones if let in."
        )
    refused = say_refused(output, library.rejected)
    say_next(
        output,
        "see which of them speak for your run, or one of them whole.",
        f"  {MATCH}",
        "  layercard cards show CARD",
    )
    output.finish({"cards": listed, "rejected": refused})


def _asked_for(row: dict[str, Any], wanted: dict[str, str | None]) -> bool:
    return all(text is None or text.lower() in row[part].lower() for part, text in wanted.items())


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("card", no_wrap=True)
    for heading in ("layers", "from", "best", "kept", "speed"):
        table.add_column(
            heading, justify="right" if heading in {"layers", "kept", "speed"} else "left", overflow="fold"
        )
    for row in rows:
        best = row["best"]
        source = row["status"] if row["kind"] == "measured" else row["kind"]
        cells = [row["key"], str(row["num_layers"]), f"quick, {source}" if row["quick"] else source]
        cells += [UNKNOWN] * 3 if best is None else [best["name"], kept(best), speed(best["step_seconds_ratio"])]
        table.add_row(*map(Text, cells))
    return table
