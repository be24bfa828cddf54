"""Where a measured card's numbers come from: versions, machine, date, and the command without anything private."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from layercard.cards.privacy import redact
from layercard.versions import installed_versions

PACKAGES = ("layercard", "torch", "transformers", "peft", "accelerate", "datasets", "bitsandbytes", "sacrebleu")


def provenance(command: Sequence[str] | None) -> dict[str, Any]:
    """Return what a card says of its origin; `command` is the words that built it, None from Python."""
    return {
        "kind": "measured",
        "versions": {"python": platform.python_version()} | installed_versions(PACKAGES),
        "hardware": _hardware(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": None if command is None else redacted(command),
    }


def redacted(words: Sequence[str]) -> str:
    """Return a command line in which paths are reduced to their last names, and secrets and addresses are taken out."""
    return redact(" ".join(shlex.quote(_without_folders(word)) for word in words))


def _without_folders(word: str) -> str:
    """Paths from the root are `redact`'s business; this knows those that exist, and those that look like one."""
    option, equals, value = word.rpartition("=")
    local = value.startswith((".", "~")) or value.count("/") > 1 or Path(value).expanduser().exists()
    if "/" not in value or "://" in value or not local:
        return word
    return f"{option}{equals}{Path(value).name}"


def _hardware() -> dict[str, Any]:
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
