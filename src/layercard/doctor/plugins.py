"""Every installed plugin: whether it can be loaded, and which hooks it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from layercard.doctor.check import Check, attempted, failed, ok

if TYPE_CHECKING:
    import pluggy

    from layercard.pipeline.placed_run import PlacedRun


def check_plugins(rows: Sequence[Mapping[str, Any]], broken: Mapping[str, Exception]) -> Iterator[Check]:
    """Yield a check for each plugin: `rows` are those that work (`name`, `version`, `hooks`), `broken` the others by name."""
    for row in rows:
        yield ok(f"plugin {row['name']}", f"{row['version']}, answers {', '.join(row['hooks'])}")
    for name, error in broken.items():
        yield failed(
            f"plugin {name}",
            " ".join(str(error).split()),
            "Mend it, install another release of it, or uninstall it: every other command stops at it.",
        )


def check_hosts(manager: pluggy.PluginManager, folder: Path, place: Callable[..., PlacedRun]) -> Iterator[Check]:
    """Yield what each plugin says of its own host, by the hook `diagnose`; one that raises is a failed check."""
    for implementation in manager.hook.diagnose.get_hookimpls():
        name = implementation.plugin_name
        own = folder / name
        own.mkdir()
        given = {"folder": own, "place": place}
        wanted = {argument: given[argument] for argument in implementation.argnames}
        says: Callable[[], Iterable[Check]] = partial(cast(Any, implementation.function), **wanted)
        yield from attempted(
            f"host of {name}",
            says,
            "Its trainers cannot be relied on here; install the tested releases above.",
        )
