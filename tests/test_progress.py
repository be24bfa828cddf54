"""Work that lasts is never silent, work that does not is; a bar on terminals, lines elsewhere."""

from __future__ import annotations

import io
import re
import threading
import time

import pytest
from rich.console import Console

from layercard.progress import Progress


def said(progress: Progress, stream: io.StringIO, wait: float) -> str:
    with progress:
        time.sleep(wait)
    return stream.getvalue()


def stream_and_console(terminal: bool) -> tuple[io.StringIO, Console]:
    stream = io.StringIO()
    return stream, Console(file=stream, force_terminal=terminal, width=100)


def test_short_work_says_nothing() -> None:
    stream, console = stream_and_console(terminal=False)
    assert said(Progress("probing", total=3, console=console, patience=30.0), stream, 0.01) == ""


def test_a_single_long_part_is_not_silent() -> None:
    """The line appears while the part still runs: its thread waits for the line itself."""
    stream, console = stream_and_console(terminal=False)
    appeared = threading.Event()

    class Watched(io.StringIO):
        def write(self, text: str) -> int:
            if "probing" in text:
                appeared.set()
            return stream.write(text)

    console.file = Watched()
    for _ in Progress("probing", console=console, patience=0.01).over(["one batch"]):
        assert appeared.wait(30)
    assert re.search(r"probing … \(0 of 1, \d+ s so far, time left unknown\)", stream.getvalue())


def test_time_left_is_told_once_a_part_is_done() -> None:
    progress = Progress("timing", total=4, show=False)
    with progress:
        progress.advance()
        assert re.fullmatch(r"timing … \(1 of 4, \d+ s so far, about \d+ s left\)", progress.line())


def test_time_left_is_told_in_the_middle_of_a_single_part() -> None:
    progress = Progress("probing", total=1, show=False)
    with progress:
        progress.reach(0.25)
        progress.reach(0.1)
        assert re.fullmatch(r"probing … \(0 of 1, \d+ s so far, about \d+ s left\)", progress.line())
        progress.advance()
        assert "1 of 1" in progress.line()


def test_lines_become_rarer() -> None:
    stream, console = stream_and_console(terminal=False)
    lines = said(Progress("loading", console=console, patience=0.02), stream, 0.8).splitlines()
    assert 2 <= len(lines) <= 6  # after 0.02, 0.06, 0.14, 0.3 and 0.62 s


def test_a_terminal_gets_a_bar_that_goes() -> None:
    stream, console = stream_and_console(terminal=True)
    text = said(Progress("probing", total=2, console=console, patience=0.01), stream, 0.8)
    assert "probing" in text
    assert "so far" not in text


def test_it_ends_when_the_work_fails() -> None:
    with pytest.raises(ValueError, match="broken"), Progress("probing", patience=0.01):
        raise ValueError("broken")
    assert not [thread for thread in threading.enumerate() if thread.name == "layercard-progress"]


def test_other_ranks_are_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    stream, console = stream_and_console(terminal=False)
    assert said(Progress("probing", console=console, patience=0.01), stream, 0.1) == ""
