"""Where text for people and JSON for machines go.

With `--json` standard output holds one JSON document in one line and text goes to standard error; without it text goes
to standard output.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console

from layercard.progress import Progress


@contextmanager
def starting() -> Iterator[None]:
    """Tell that torch and transformers are being imported, where that lasts."""
    with Progress("starting (importing torch and transformers)"):
        yield


class Output:
    """Prints for people, and at the end the document where a machine asked for one."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self.console = Console(stderr=as_json, highlight=False)

    def say(self, line: str) -> None:
        """Print a line for people, as it is."""
        self.console.print(line, markup=False, soft_wrap=True)

    def finish(self, document: Mapping[str, Any]) -> None:
        """Print the document where `--json` was given; numbers that are not finite become null."""
        if self._as_json:
            click.echo(json.dumps(_finite(document), allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
