"""What users write for `schedule`: when, in a run, how large a part of the adapted layers stops learning.

`rising` is `0.25:0.5`: after a quarter of the optimizer steps the lower half of the adapted layers keeps what it has learned,
and backpropagation ends above it. Several rises stand behind commas, `0.25:0.33, 0.5:0.67`. (AutoFreeze, arXiv 2102.01386,
freezes from below in the same way.)
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from layercard.errors import SettingsError

NAMED = {"rising": "0.25:0.5"}


@dataclass(frozen=True)
class Rise:
    """After the share `after` of the run's optimizer steps, the lower share `share` of the adapted layers learns no more."""

    after: float
    share: float


def parse_schedule(text: str | None) -> tuple[Rise, ...]:
    """Return the rises that `text` names, in their order; none for None.

    Raises `SettingsError` where it cannot be read, or does not rise.
    """
    if text is None:
        return ()
    parts = NAMED.get(text.strip(), text).split(",")
    rises = tuple(_rise(part, text) for part in parts)
    ascending = all(a.after < b.after and a.share < b.share for a, b in pairwise(rises))
    if not ascending:
        raise _wrong(text, "Both numbers go up from rise to rise.")
    return rises


def _rise(part: str, text: str) -> Rise:
    try:
        after, share = (float(number) for number in part.split(":"))
    except ValueError:
        raise _wrong(text, "") from None
    if not (0 < after < 1 and 0 < share < 1):
        raise _wrong(text, "Both numbers are shares, above 0 and under 1.")
    return Rise(after, share)


def _wrong(text: str, why: str) -> SettingsError:
    return SettingsError(
        f"`schedule` is {text!r}. It is `rising`, or rises such as `0.25:0.5`: after that share of the steps, that share of the "
        f"adapted layers, from below, learns no more; several stand behind commas.{' ' + why if why else ''}"
    )
