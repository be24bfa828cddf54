"""Goes through the parts of a study and says after each one how it went and how long the rest may take."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from layercard.progress import Progress
from layercard.study.store import Store

Kind = Literal["probe", "evaluation", "cost", "training"]


@dataclass(frozen=True)
class Part:
    """One part: the name of its file, what it depends on beside the study's inputs, and how it is made."""

    name: str
    kind: Kind
    own: Mapping[str, Any]
    make: Callable[[], dict[str, Any]]


class Pace:
    """Learns from the parts made so far how long those of a kind take; parts found finished take no time."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._seconds: dict[Kind, list[float]] = defaultdict(list)

    def through(self, store: Store, parts: Sequence[Part]) -> Iterator[dict[str, Any]]:
        """Yield the result of every part in turn, made where the store does not hold it."""
        missing = [part for part in parts if not store.has(part.name, **part.own)]
        found = len(parts) - len(missing)
        if found:
            self._say(f"{found} of {len(parts)} parts were finished before.")
        for part in parts:
            if part not in missing:
                yield store.result(part.name, part.make, **part.own)
                continue
            began = time.perf_counter()
            with Progress(part.name):
                result = store.result(part.name, part.make, **part.own)
            taken = time.perf_counter() - began
            self._seconds[part.kind].append(taken)
            missing.remove(part)
            number = len(parts) - len(missing)
            self._say(f"[{number}/{len(parts)}] {part.name}: {_summary(result)}{taken:.0f} s{self._left(missing)}")
            yield result

    def _left(self, missing: Sequence[Part]) -> str:
        """In words, what the missing parts of known kinds will take; nothing while none is known or none is left."""
        known = {kind: sum(taken) / len(taken) for kind, taken in self._seconds.items()}
        expected = [known[part.kind] for part in missing if part.kind in known]
        if not expected:
            return ""
        more = "" if len(expected) == len(missing) else "more than "
        return f"; {more}{duration(sum(expected))} left"


def _summary(result: Mapping[str, Any]) -> str:
    metrics = result.get("metrics", {})
    return "".join(f"{name} {value:.4f}, " for name, value in metrics.items())


def duration(seconds: float) -> str:
    """Return a span of time as people read it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
