"""`Check`: one thing that was looked at, how it stands, and what to do where it does not stand well."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Check:
    """One row: `found` is what is so; `advice` what to do about it, and stands wherever the status is not `ok`."""

    name: str
    status: Status
    found: str
    advice: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what `layercard doctor --json` holds of it."""
        return asdict(self)


def ok(name: str, found: str) -> Check:
    """Return a check that stands well."""
    return Check(name, "ok", found)


def warning(name: str, found: str, advice: str) -> Check:
    """Return a check that keeps nobody from training."""
    return Check(name, "warning", found, advice)


def failed(name: str, found: str, advice: str) -> Check:
    """Return a check that keeps layercard from working."""
    return Check(name, "failed", found, advice)


def attempted(name: str, looks: Callable[[], Iterable[Check]], advice: str) -> Iterator[Check]:
    """Yield the checks that `looks` makes; whatever it raises is a failed one of this name."""
    try:
        yield from looks()
    except Exception as error:  # noqa: BLE001  a doctor that falls ill tells nothing of the other checks
        yield failed(name, f"{type(error).__name__}: {' '.join(str(error).split())}", advice)
