"""`layercard cards add`: put Layer Cards into the user's own library."""

from __future__ import annotations

from pathlib import Path

import click

from layercard import plugins
from layercard.cli.help import Command, examples
from layercard.cli.next_steps import MATCH, say_next
from layercard.cli.options import CONTEXT, output_options
from layercard.cli.output import Output


@click.command(cls=Command, context_settings=CONTEXT, epilog=examples("layercard cards add card.json"))
@click.argument("paths", nargs=-1, required=True, metavar="PATH…")
@click.option("--replace", is_flag=True, help="Replace cards of the same name in your own library.")
@output_options
def add(paths: tuple[str, ...], replace: bool, as_json: bool) -> None:
    """Check card files and copy them into your own library; copy none where one cannot be taken."""
    from layercard.cards.adding import add_cards
    from layercard.cards.library import default_user_dir
    from layercard.cards.reading import read_card
    from layercard.errors import CardError

    output = Output(as_json=as_json)
    given = [read_card(Path(path), source=path) for path in paths]
    try:
        placed = add_cards(given, plugins.card_folders(), replace=replace)
    except OSError as error:
        raise CardError(
            f"Your library at {default_user_dir()} cannot be written ({error.strerror or error}). `LAYERCARD_CARDS` names "
            "another folder."
        ) from None
    for card, target in zip(given, placed, strict=True):
        output.say(f"Added {card.key}: {target}")
    say_next(output, "`auto` asks them from now on. See whether one speaks for your run.", f"  {MATCH}")
    rows = [{"key": card.key, "path": str(target)} for card, target in zip(given, placed, strict=True)]
    output.finish({"added": rows})
