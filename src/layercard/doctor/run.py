"""`examine`: every check in order, each guarded, with the work of each told while it lasts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from layercard.doctor.check import Check, attempted
from layercard.doctor.files import check_files, folder_for
from layercard.doctor.plugins import check_hosts, check_plugins
from layercard.doctor.versions import check_versions
from layercard.progress import Progress

if TYPE_CHECKING:
    import pluggy

REINSTALL = "Install layercard again, with the tested releases above."
BROKEN_TOY = "Runs cannot be placed with this installation; install the tested releases above."


def examine(
    manager: pluggy.PluginManager, rows: Sequence[Mapping[str, Any]], broken: Mapping[str, Exception], output: Path
) -> list[Check]:
    """Return every check.

    Parameters: `manager` holds the plugins that work, `rows` says of each its name, version and hooks, `broken` what is wrong
    with the others; `output` is the folder that the user trains into, which need not be there.
    """
    found: list[Check] = []
    console = Console(file=sys.stderr, highlight=False)  # the one of now: toy runs are silenced
    with folder_for(output) as (folder, problem), Progress("checking", total=6, console=console) as progress:
        for name, looks, advice in _steps(manager, rows, broken, folder, output, problem):
            found.extend(attempted(name, looks, advice))
            progress.advance()
    return found


def _steps(
    manager: pluggy.PluginManager,
    rows: Sequence[Mapping[str, Any]],
    broken: Mapping[str, Exception],
    folder: Path,
    output: Path,
    problem: OSError | None,
) -> Iterator[tuple[str, Callable[[], Iterable[Check]], str]]:
    """Yield name, work and advice of each step; what is heavy is imported by the step that needs it."""
    toy = folder / "toy"

    def devices() -> Iterator[Check]:
        from layercard.doctor.machine import check_devices, check_dtypes

        yield from check_devices()
        yield from check_dtypes()

    def placed() -> Iterator[Check]:
        from layercard.doctor.toy import check_toy
        from layercard.pipeline.place import place

        yield from check_toy(toy, partial(place, manager=manager))

    def hosts() -> Iterator[Check]:
        from layercard.pipeline.place import place

        yield from check_hosts(manager, folder, partial(place, manager=manager))

    yield "versions", check_versions, REINSTALL
    yield "plugins", lambda: check_plugins(rows, broken), REINSTALL
    yield "machine", devices, REINSTALL
    yield "toy run", placed, BROKEN_TOY
    yield "output folder", lambda: check_files(toy, output, problem), "Give another folder with `--output-dir FOLDER`."
    yield "hosts", hosts, BROKEN_TOY
