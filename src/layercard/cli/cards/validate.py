"""`layercard cards validate`: everything that keeps files from being Layer Cards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from layercard.cli.help import Command, examples
from layercard.cli.next_steps import say_command
from layercard.cli.options import CONTEXT, output_options
from layercard.cli.output import Output
from layercard.errors import EXIT_CHECK_FAILED

NO_CARD = "the folder holds no Layer Card. One lies there as `<model>/<dataset>.json`."


@click.command(cls=Command, context_settings=CONTEXT, epilog=examples("layercard cards validate card.json ./cards"))
@click.argument("paths", nargs=-1, required=True, metavar="PATH…")
@output_options
def validate(paths: tuple[str, ...], as_json: bool) -> int:
    """Check files, or folders of cards with their file names. Exits with 3 where one is no valid card."""
    output = Output(as_json=as_json)
    checked = [row for path in map(Path, paths) for row in (_folder(path) if path.is_dir() else [_file(path)])]
    for row in checked:
        output.say(f"{row['path']}: {'valid' if not row['problems'] else 'not valid'}")
        for problem in row["problems"]:
            output.say(f"  {problem}")
    valid = sum(not row["problems"] for row in checked)
    output.say(f"{valid} of {len(checked)} valid.")
    if valid < len(checked):
        output.say("Cards with problems are never asked. Mend what is named, and check again.")
    elif given := [path for path in paths if not Path(path).is_dir()]:
        say_command(output, "put them into your own library.", "layercard", "cards", "add", *given)
    output.finish({"files": checked, "valid": valid == len(checked)})
    return 0 if valid == len(checked) else EXIT_CHECK_FAILED


def _file(path: Path, folder: Path | None = None) -> dict[str, Any]:
    from layercard.cards.reading import parse, read_text
    from layercard.cards.schema import problems
    from layercard.errors import CardError

    try:
        found = problems(parse(read_text(path, folder, path.name), path.name))
    except CardError as error:
        found = [str(error).removeprefix(f"{path.name}: ")]
    return {"path": str(path), "problems": found}


def _folder(folder: Path) -> list[dict[str, Any]]:
    """Every file in a library's folder, that each lies where its key says, and that no two disagree."""
    from layercard.cards.library import Library
    from layercard.cards.reading import card_files

    rows = {path.relative_to(folder).as_posix(): _file(path, folder) for path in card_files(folder)}
    library = Library.of([("", folder)])
    for card in library.cards:
        lies = card.source.removeprefix(":")
        if lies != f"{card.key}.json":
            rows[lies]["problems"].append(f"it belongs at {card.key}.json, after its model and dataset")
    for source, reason in library.rejected:
        row = rows[source.removeprefix(":")]
        row["problems"] = row["problems"] or [reason]
    return list(rows.values()) or [{"path": str(folder), "problems": [NO_CARD]}]
