"""`Progress`: says on standard error what lasts and how much time is left, once it has lasted a few seconds.

A thread of its own speaks, so that a single long step is not silent. On a terminal it draws a bar that goes when the work is
done; elsewhere it prints a line, and further ones at longer and longer intervals.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console
    from rich.progress import Progress as Bar

Item = TypeVar("Item")
PATIENCE_SECONDS = 2.5
"""How long the work may last in silence."""
FURTHER = 2.0
"""Each further line where no terminal is comes after this many times the time of the line before."""


class Progress:
    """A context manager around work that may last; `advance` tells it that one of `total` parts is done."""

    def __init__(
        self,
        what: str,
        *,
        total: int | None = None,
        show: bool = True,
        console: Console | None = None,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self._what, self._total, self._show = what, total, show and _is_first_rank()
        self._console, self._patience = console, patience
        self._done, self._part = 0, 0.0
        self._began = 0.0
        self._over = threading.Event()
        self._speaker: threading.Thread | None = None

    def __enter__(self) -> Progress:
        self._began = time.perf_counter()
        if self._show:
            self._over.clear()
            self._speaker = threading.Thread(target=self._speak, name="layercard-progress", daemon=True)
            self._speaker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._speaker is not None:
            self._speaker.join()
            self._speaker = None

    def advance(self) -> None:
        """Note that a part is done."""
        self._done, self._part = self._done + 1, 0.0

    def reach(self, share: float) -> None:
        """Note that this share of the part under way is done; less than before changes nothing."""
        self._part = max(self._part, min(share, 1.0))

    def over(self, items: Sequence[Item]) -> Iterator[Item]:
        """Yield `items`; each is done when the next is asked for."""
        self._total = len(items)
        with self:
            for item in items:
                yield item
                self.advance()

    def _speak(self) -> None:
        if self._over.wait(self._patience):
            return
        console = self._console or _standard_error()
        if console.is_terminal:
            self._draw(console)
        else:
            self._print(console)

    def _draw(self, console: Console) -> None:
        with _bar(console) as bar:
            task = bar.add_task(self._what, total=self._total)
            while not self._over.wait(0.25):
                bar.update(task, completed=self._so_far)

    def _print(self, console: Console) -> None:
        pause = self._patience
        while True:
            console.print(self.line(), markup=False, soft_wrap=True)
            pause *= FURTHER
            if self._over.wait(pause):
                return

    @property
    def _so_far(self) -> float:
        return self._done + self._part

    def line(self) -> str:
        """Return what is under way, how far it is, and the time left where that can be told."""
        seconds = time.perf_counter() - self._began
        if self._total is None:
            return f"{self._what} … ({seconds:.0f} s so far)"
        done = self._so_far
        left = f"about {seconds / done * (self._total - done):.0f} s left" if done else "time left unknown"
        return f"{self._what} … ({self._done} of {self._total}, {seconds:.0f} s so far, {left})"


def _standard_error() -> Console:
    from rich.console import Console

    return Console(file=sys.stderr, highlight=False)


def _bar(console: Console) -> Bar:
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True)


def _is_first_rank() -> bool:
    """Whether this is the only process or the first; without importing torch where nothing else has."""
    return os.environ.get("RANK", "0") == "0"
