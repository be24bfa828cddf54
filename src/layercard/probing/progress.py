"""A progress bar that appears only where the work takes more than a few seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")
PATIENCE_SECONDS = 3.0


class Progress:
    """Shows a bar on standard error, on the first rank, once the work is expected to exceed `PATIENCE_SECONDS`."""

    def __init__(self, what: str, *, show: bool = True) -> None:
        self._what, self._show = what, show and _is_first_rank()

    def over(self, items: Sequence[Item]) -> Iterator[Item]:
        """Yield `items`, drawing the bar as they are consumed."""
        from rich.console import Console
        from rich.progress import Progress as Bar

        began = time.perf_counter()
        bar = Bar(console=Console(stderr=True), transient=True, disable=not self._show)
        try:
            task = bar.add_task(self._what, total=len(items))
            for done, item in enumerate(items):
                expected = (time.perf_counter() - began) / max(done, 1) * len(items)
                if done and expected > PATIENCE_SECONDS and not bar.live.is_started:
                    bar.start()
                yield item
                bar.advance(task)
        finally:
            bar.stop()


def _is_first_rank() -> bool:
    import torch.distributed as dist

    return not dist.is_initialized() or dist.get_rank() == 0
