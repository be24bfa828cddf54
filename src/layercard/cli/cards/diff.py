"""`layercard cards diff`: two Layer Cards beside each other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from layercard import plugins
from layercard.cli.cards.words import UNKNOWN, number
from layercard.cli.help import Command, examples
from layercard.cli.next_steps import say_next
from layercard.cli.options import CONTEXT, output_options
from layercard.cli.output import Output

if TYPE_CHECKING:
    from layercard.cards.comparison import Difference

WIDEST = 60


@click.command(
    cls=Command, context_settings=CONTEXT, epilog=examples("layercard cards diff smollm2-135m-instruct/gsm8k card.json")
)
@click.argument("one")
@click.argument("other")
@output_options
def diff(one: str, other: str, as_json: bool) -> None:
    """Show what differs between the cards ONE and OTHER: names in `layercard cards list`, or JSON files."""
    from layercard.cards.comparison import compare
    from layercard.cards.library import Library

    output = Output(as_json=as_json)
    first, second = Library.open(plugins.card_folders()).named(one, other)
    found = compare(first, second)
    if found.same:
        output.say(f"{one} and {other} say the same.")
    for title, rows in (("Fields that differ", found.fields), ("Outcomes that differ", found.outcomes)):
        if rows:
            output.console.print(_table(title, rows, one, other))
    if found.changed_layers:
        output.say(f"Entries that differ: layers {', '.join(map(str, found.changed_layers))}")
    for score, correlation in found.spearman.items():
        output.say(f"Spearman correlation of the layers by {score}: {correlation:.3f}")
    if found.spearman:
        output.say("Cards of one model that rank layers alike (0.9 or more by resnorm) can speak for the same runs.")
    say_next(output, "see one of them whole.", "  layercard cards show CARD")
    output.finish(
        {
            "same": found.same,
            "fields": [asdict(row) for row in found.fields],
            "outcomes": [asdict(row) for row in found.outcomes],
            "spearman": dict(found.spearman),
            "changed_layers": list(found.changed_layers),
        }
    )


def _table(title: str, rows: Iterable[Difference], one: str, other: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("field", no_wrap=True)
    for heading in (one, other):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, (row.where, _shown(row.one), _shown(row.other))))
    return table


def _shown(value: Any) -> str:
    if value is None:
        return UNKNOWN
    if isinstance(value, float):
        return number(value)
    text = " ".join(str(value).split())
    return text if len(text) <= WIDEST else f"{text[:WIDEST]}…"
