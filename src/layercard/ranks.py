"""The processes of one run: how many there are, what each holds, and that one which fails ends the others.

Offers `has_process_group`, `ranks`, `rank`, `gathered`, `meet`, `together` and `in_lockstep`. In a single process every
question has one answer and nothing is sent. Ranks talk in rounds: each sends what it holds, or, once it has failed, why, so that
whoever waits in a later round learns of it there instead of waiting for a process that will not come.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

import torch.distributed as dist

from layercard import errors
from layercard.errors import LayercardError, RankError

Value = TypeVar("Value")
TOLD = "layercard_told"
"""The mark of an error that every rank has heard of, or that none can be told."""


@dataclass(frozen=True)
class _Sent(Generic[Value]):
    """What one rank sends in a round: a value, or where it failed the name of layercard's error, if any, and the message."""

    value: Value | None
    failed: tuple[str | None, str] | None = None


def has_process_group() -> bool:
    """Return whether torch.distributed is at work, be it in one process alone."""
    return dist.is_available() and dist.is_initialized()


def ranks() -> int:
    """Return how many processes the run has, 1 without torch.distributed."""
    return dist.get_world_size() if has_process_group() else 1


def rank() -> int:
    """Return the number of this process among them, counted from 0."""
    return dist.get_rank() if ranks() > 1 else 0


def gathered(value: Value) -> list[Value]:
    """Return every rank's `value`, in the order of ranks; every rank has to ask.

    Where one failed inside `together` instead, raises what `together` raises on the others.
    """
    if ranks() == 1:
        return [value]
    sent = _round(_Sent(value))
    _raise_first(sent, None)
    return [cast("Value", each.value) for each in sent]  # none failed, so each sent one


def meet() -> None:
    """Wait for every rank to come here; raise as `gathered` does where one failed before."""
    gathered(None)


@contextmanager
def together() -> Iterator[None]:
    """Run a block on every rank; where it fails on one, it fails on all of them, with the message of the first that failed.

    Every rank has to enter. Inside, ranks may wait for each other by `gathered`, `meet` and `together`, and by anything else
    right after one of these. Raises on the other ranks the error of layercard's own that the first failing rank raised, so that
    all of them judge it alike, and `RankError` where it raised any other.
    """
    try:
        yield
    except Exception as error:
        if ranks() > 1 and TOLD not in vars(error):
            vars(error)[TOLD] = True
            _raise_first(_round(_Sent(None, failed=(_own_kind(error), _described(error)))), error)
        raise
    else:
        meet()


@contextmanager
def in_lockstep() -> Iterator[None]:
    """Run a block whose own code makes ranks wait for each other, as a sharded forward pass does.

    What fails inside is told to nobody, since the others wait for something else: the process has to end, and whoever
    launched it ends the others.
    """
    try:
        yield
    except Exception as error:
        vars(error)[TOLD] = True
        raise


def _round(mine: _Sent[Value]) -> list[_Sent[Value]]:
    sent = [mine] * ranks()
    dist.all_gather_object(sent, mine)
    return sent


def _raise_first(sent: list[_Sent[Value]], own: Exception | None) -> None:
    """Raise what the first failing rank has to say, unless this one says the same, whose `own` error goes on by itself."""
    found = next(((number, each.failed) for number, each in enumerate(sent) if each.failed is not None), None)
    if found is None or found[1] == sent[rank()].failed:
        return
    number, (name, message) = found
    error = _as_told(number, name, message)
    vars(error)[TOLD] = True
    raise error from own


def _as_told(number: int, name: str | None, message: str) -> LayercardError:
    if name is not None:
        kind: type[LayercardError] = getattr(errors, name)
        return kind(f"Rank {number}: {message}")
    return RankError(
        f"Rank {number} of this run failed ({message}). A run needs all of its ranks, so this one ends too. The output of rank "
        f"{number} has the traceback."
    )


def _own_kind(error: Exception) -> str | None:
    """The name of the class in `layercard.errors` that `error` is of, a plugin's own subclass included."""
    return next((kind.__name__ for kind in type(error).__mro__ if kind.__module__ == errors.__name__), None)


def _described(error: Exception) -> str:
    return str(error) if _own_kind(error) is not None else f"{type(error).__name__}: {error}"
