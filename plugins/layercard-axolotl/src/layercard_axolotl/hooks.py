"""The hooks through which layercard-axolotl joins layercard. Imports Axolotl only where a trainer or a command asks."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from layercard.hookspecs import hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import click

    from layercard.doctor.check import Check
    from layercard.hosts.protocol import Host


@hookimpl(tryfirst=True)
def locate_host(trainer: Any) -> Host | None:
    """Answer for Axolotl's trainers, among them those that extend TRL's; None for all other trainers."""
    if "axolotl" not in sys.modules:
        return None
    from layercard_axolotl.hosts import locate

    return locate(trainer)


@hookimpl
def extend_command(command: click.Command) -> None:
    """Add `--axolotl` to `layercard plan`."""
    if command.name == "plan":
        from layercard_axolotl.plan_option import add_option

        add_option(command)


@hookimpl
def diagnose(folder: Path) -> Iterator[Check]:
    """Train the toy as `axolotl train` does, placed by `lora_layers`."""
    from layercard_axolotl.diagnosis import check_run

    yield check_run(folder)
