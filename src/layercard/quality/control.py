"""Control rows, whose loss says what a model forgets: reading them, and what their losses say.

Forgetting is the rise of the mean loss on control rows, in nats a token, over that of the model that training began
with. The rows shipped (`control_rows.jsonl`) were written for this: everyday English, facts, sums, instructions, code and
dialogue. Knows nothing of models.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from layercard.errors import SettingsError

BUILTIN = "builtin"
MOST_ROWS = 512
BEFORE, ALL_LAYERS, PLACED, END = "before", "all_layers", "placed", "end"
NO_END = "Training had not ended when this was written."


@dataclass(frozen=True)
class ControlTexts:
    """The texts, and from where: `builtin` or the name of a file."""

    texts: tuple[str, ...]
    source: str

    @property
    def digest(self) -> str:
        """Tells one set of rows from another."""
        return hashlib.sha256("\n\0".join(self.texts).encode()).hexdigest()[:16]


def read_control(control: str) -> ControlTexts:
    """Return the rows of the setting `control`: `builtin`, or the path of JSON lines with a `text` each.

    Raises `SettingsError` naming file, line and what was found.
    """
    if control == BUILTIN:
        content = files("layercard.quality").joinpath("control_rows.jsonl").read_text(encoding="utf-8")
        return ControlTexts(_texts(content, "control_rows.jsonl"), BUILTIN)
    path = Path(control)
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"`control` is {control!r}, which cannot be read ({error}). It is `builtin`, or the path of a file of JSON lines "
            'such as {"text": "Water boils at 100 degrees."}.'
        ) from error
    return ControlTexts(_texts(content, control), path.name)


def _texts(content: str, name: str) -> tuple[str, ...]:
    lines = [(number, line) for number, line in enumerate(content.split("\n"), 1) if line.strip()]
    if not 0 < len(lines) <= MOST_ROWS:
        raise SettingsError(f"The control file {name} holds {len(lines)} rows. It takes 1 to {MOST_ROWS}.")
    return tuple(_text(line, f"Line {number} of the control file {name}") for number, line in lines)


def _text(line: str, where: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise SettingsError(f'{where} holds no `text`. Each line is a JSON object such as {{"text": "Some words."}}.')
    return text


def forgetting(
    texts: ControlTexts, losses: Mapping[str, Sequence[float]], *, reason: str | None = None
) -> dict[str, Any]:
    """Return what report.json holds under `quality.forgetting`.

    Parameters: `losses` of every row in nats a token, in one order, by `before`, `all_layers` and `placed` (both after the
    trial) and `end`. `loss` holds their means and `rise` what they rose by since `before`; null where not measured, and
    where a loss is not finite (`diverged` names those).
    """
    means = {name: sum(found) / len(found) for name, found in losses.items() if found}
    loss = {name: _finite(means.get(name)) for name in (BEFORE, ALL_LAYERS, PLACED, END)}
    before = loss[BEFORE]
    rises = {name: _rise(loss[name], before) for name in (ALL_LAYERS, PLACED, END)}
    diverged = [name for name, mean in means.items() if not math.isfinite(mean)]
    rows = {"rows": len(texts.texts), "rows_from": texts.source, "digest": texts.digest}
    return {**rows, "loss": loss, "rise": rises, "diverged": diverged, "reason": reason}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _rise(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before
