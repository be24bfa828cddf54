"""What a report says of forgetting: the rise of the loss on control rows, by the end and in the trial."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

UNKNOWN = "unknown"
NAMES = {
    "before": "before training",
    "all_layers": "all-layer LoRA, after the trial",
    "placed": "placed layers, after the trial",
    "end": "placed layers, at the end of the run",
}


def forgetting_cells(quality: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return what a table says of all-layer LoRA and of the placed run; None where no control rows were asked for."""
    found = quality.get("forgetting")
    if not found:
        return None
    return _cell(found, "all_layers", "trial"), forgetting_cell(quality)


def forgetting_cell(quality: Mapping[str, Any]) -> str:
    """Return the rise by the end, else that in the trial; `unknown` where neither was measured."""
    found = quality.get("forgetting") or {}
    end = _cell(found, "end", "end")
    return end if end != UNKNOWN else _cell(found, "placed", "trial")


def forgetting_rise(quality: Mapping[str, Any]) -> float | None:
    """Return the rise by the end of training, in nats a token; None where it was not measured."""
    rise: float | None = ((quality.get("forgetting") or {}).get("rise") or {}).get("end")
    return rise


def forgetting_sentence(quality: Mapping[str, Any]) -> str | None:
    """Return the finding in a sentence or two; None where no control rows were asked for."""
    found = quality.get("forgetting")
    if not found:
        return None
    rise = found["rise"]
    rows = f"loss on {found['rows']} control rows ({found['rows_from']})"
    head = f"Forgetting: unknown; {rows}."
    if "end" in found["diverged"]:
        head = f"Forgetting: the {rows} is no longer finite."
    elif rise["end"] is not None:
        before, end = found["loss"]["before"], found["loss"]["end"]
        head = f"Forgetting: {rise['end']:+.4f} nats a token, from {before:.4f} to {end:.4f}; {rows}."
    trial = [f"{NAMES[name].split(',')[0]} {_said(found, name)}" for name in ("all_layers", "placed")]
    both = f" After the trial: {' and '.join(trial)}."
    reason = f" {found['reason']}" if found["reason"] else ""
    return head + both + reason


def forgetting_rows(quality: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return when, loss and rise, for a table; empty where no control rows were asked for."""
    found = quality.get("forgetting")
    if not found:
        return []
    rows = []
    for name, words in NAMES.items():
        loss = found["loss"][name]
        known = "not finite" if name in found["diverged"] else UNKNOWN if loss is None else f"{loss:.4f}"
        rows.append((words, known, "0" if name == "before" else _said(found, name)))
    return rows


def _cell(found: Mapping[str, Any], name: str, when: str) -> str:
    said = _said(found, name) if found else UNKNOWN
    return said if said == UNKNOWN else f"{said} ({when})"


def _said(found: Mapping[str, Any], name: str) -> str:
    if name in found["diverged"]:
        return "diverged"
    rise = found["rise"][name]
    return UNKNOWN if rise is None else f"{rise:+.4f}"
