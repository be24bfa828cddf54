"""Says what trains, or no longer trains, outside the layers that were placed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SHOWN = 3


def elsewhere_lines(found: Sequence[Mapping[str, Any]], path: str) -> list[str]:
    """Return the lines to say of `found` (`Elsewhere.to_dict`), where the layers at `path` were placed; none for nothing."""
    shed = [part for part in found if not part["trains"]]
    kept = [part for part in found if part["trains"]]
    lines = []
    if shed:
        lines.append(
            f"Adapters of {_named(shed)} of what all-layer LoRA trains) were taken out, for the layers of `{path}` alone are "
            "placed; `other_stacks: keep` trains them. All-layer LoRA, which the run is compared with, has them."
        )
    if kept:
        lines.append(f"Trained beside the layers: {_named(kept)} of the trainable parameters).")
    return lines


def beside(found: Sequence[Mapping[str, Any]]) -> str:
    """Return what a table adds to the placed layers; empty where nothing else trains."""
    kept = [part for part in found if part["trains"]]
    if not kept:
        return ""
    what = f"`{kept[0]['where']}`" if len(kept) == 1 else f"{len(kept)} modules elsewhere"
    return f" and {what} ({_share(kept)} of the parameters)"


def _named(parts: Sequence[Mapping[str, Any]]) -> str:
    return f"{_names(parts)} ({_share(parts)}"


def _names(parts: Sequence[Mapping[str, Any]]) -> str:
    listed = ", ".join(f"`{part['where']}`" for part in parts[:SHOWN])
    return f"{listed} and {len(parts) - SHOWN} more" if len(parts) > SHOWN else listed


def _share(parts: Sequence[Mapping[str, Any]]) -> str:
    share = sum(part["share"] for part in parts)
    return f"{share:.0%}" if share >= 0.005 else "under 1%"
