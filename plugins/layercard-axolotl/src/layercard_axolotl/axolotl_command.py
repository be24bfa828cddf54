"""`axolotl layercard-plan CONFIG`: `layercard plan --axolotl CONFIG`, where Axolotl takes commands of plugins (0.21 and later).

Axolotl imports it when it is used and shows its first sentence in `axolotl --help`, so nothing heavy is imported here.
"""

from __future__ import annotations

from pathlib import Path

import click


@click.command(
    "layercard-plan",
    context_settings={"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]},
    epilog="OPTIONS are those of `layercard plan`, such as `-o placed.yml` and `--strategy last`: `layercard plan --help`.",
)
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def layercard_plan(context: click.Context, config: Path, options: tuple[str, ...]) -> None:
    """Choose the layers worth adapting for CONFIG and write them into it."""
    from layercard.cli.main import main

    context.exit(main(["plan", "--axolotl", str(config), *options]))
