"""Prints what a run says, each line with one prefix, so that it can be found in any host's log (`grep -F '[layercard]'`).

Sentences are not wrapped: a log keeps a line a line, and a terminal wraps by itself.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable

from rich.console import Console, RenderableType

PREFIX = "[layercard] "
NARROWEST = 40


def say(lines: Iterable[str], console: Console | None = None) -> None:
    """Print the lines to `console`, or to standard error."""
    console = console or Console(stderr=True, highlight=False)
    for line in lines:
        console.print(PREFIX + line, markup=False, highlight=False, soft_wrap=True)


def drawn(renderable: RenderableType, width: int) -> list[str]:
    """Return the lines of a table drawn so that it fits `width` behind the prefix."""
    paper = Console(file=io.StringIO(), width=max(NARROWEST, width - len(PREFIX)), color_system=None, highlight=False)
    paper.print(renderable)
    assert isinstance(paper.file, io.StringIO)
    return [line.rstrip() for line in paper.file.getvalue().splitlines()]


class _Prefixed(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        """Put the prefix in front, once."""
        if not str(record.msg).startswith(PREFIX):
            record.msg = f"{PREFIX}{record.msg}"
        return True


_PREFIXED = _Prefixed()


def prefix_log() -> None:
    """Give everything that layercard logs from now on the prefix too."""
    logging.getLogger("layercard").addFilter(_PREFIXED)  # the same filter is added once
