"""`layercard cards`: the group that holds the commands about Layer Cards."""

from __future__ import annotations

import click

from layercard.cli.cards.add import add
from layercard.cli.cards.build import build
from layercard.cli.cards.diff import diff
from layercard.cli.cards.listing import list_cards
from layercard.cli.cards.match import match
from layercard.cli.cards.show import show
from layercard.cli.cards.validate import validate
from layercard.cli.help import Group, examples
from layercard.cli.options import CONTEXT


@click.group(
    cls=Group,
    context_settings=CONTEXT,
    epilog=examples("layercard cards list", "layercard cards match ./model data.jsonl"),
)
def cards() -> None:
    """List, show, check and compare Layer Cards: what layers were worth, by model and dataset."""


for command in (list_cards, show, match, validate, diff, add, build):
    cards.add_command(command)
