"""Bytes: what users write for `prefix_cache`, how many a data set needs, and how people read them.

Imports no torch, so that settings can be checked without it.
"""

from __future__ import annotations

import math
import os
import re

from layercard.errors import SettingsError

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
ROOM = 0.1
"""The share of a device left for what a prediction of memory does not see: its context, the allocator's fragments."""
SHARE_OF_MEMORY = 0.25
"""How much of the machine's memory `on` may take, in all ranks of the machine together."""


def parse_prefix_cache(value: str | bool) -> int | None:
    """Return the cache's limit in bytes of memory: None for `off`, a quarter of the machine's memory for
    `on`.

    Accepts `off`, `on`, booleans (YAML reads `on` as one) and sizes such as `8GiB` or `500 MB`. Raises
    `SettingsError`.
    """
    text = {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value
    if not isinstance(text, str):
        raise _error(value)
    if text.strip().lower() in {"off", "false", "on", "true"}:
        return _default_limit() if text.strip().lower() in {"on", "true"} else None
    limit = parse_size(text)
    if limit is None:
        raise _error(value)
    return limit


def parse_size(text: str) -> int | None:
    """Return the bytes of a size such as `24GiB` or `500 MB`, at least one; None where it is no size."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", text)
    if match is None or match[2].upper() not in UNITS:
        return None
    size = float(match[1]) * UNITS[match[2].upper()]
    return int(size) or None if math.isfinite(size) else None


def usable(device: int) -> int:
    """Return how many of a device's bytes a predicted peak may take."""
    return int((1 - ROOM) * device)


def projected_bytes(tokens: int, width: int, itemsize: int) -> int:
    """Return the bytes that the hidden states of `tokens` need: one vector of `width` numbers of `itemsize` bytes each."""
    return tokens * width * itemsize


def bytes_text(count: int | None) -> str:
    """Return bytes as people read them."""
    if count is None:
        return "unknown"
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _default_limit() -> int:
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return int(SHARE_OF_MEMORY * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / ranks)


def _error(value: object) -> SettingsError:
    return SettingsError(
        f"`prefix_cache` is {value!r}. It is `off`, `on`, or a limit of memory such as `8GiB` or `500MB`."
    )
