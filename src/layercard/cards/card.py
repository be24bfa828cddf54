"""`LayerCard`: a validated JSON document and typed views of it.

A card is its document: views read it and nothing is lost on the way back to disk, fields of later versions included.
What a document must hold is the schema's business (`schema.py`), where cards are found the library's (`library.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from layercard.probing.statistics import Array

Status = Literal["community", "reproduced"]
Direction = Literal["higher", "lower"]
Kind = Literal["regime", "strategy", "reference"]


@dataclass(frozen=True)
class Metric:
    """One number on held-out data: a mean over seeds, with every seed's value where they are known."""

    name: str
    value: float
    direction: Direction
    """Whether higher or lower is better."""
    seeds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What one set of adapted layers reached and cost: a regime, a strategy by depth, all layers, or the untuned model."""

    name: str
    """`high`, `mid`, `low` for strata of resnorm; a strategy by depth such as `uniform`; `all_layers`; `untuned`."""
    kind: Kind
    """A `regime` is a stratum of the card's own layers by resnorm, a `strategy` goes by depth; `reference`s frame them."""
    layers: tuple[int, ...] | None
    """None where a publication does not name them."""
    count: int | None
    """How many layers were adapted."""
    resnorm_range: tuple[float, float] | None
    metrics: Mapping[str, Metric]
    step_seconds_ratio: float | None
    """Seconds of a step relative to all-layer LoRA, in the same run; below 1 is faster."""
    peak_memory_ratio: float | None
    """Peak memory of a step relative to all-layer LoRA."""


@dataclass(frozen=True)
class LayerCard:
    """One (model, dataset) record; `document` has passed the schema."""

    document: Mapping[str, Any]
    source: str
    """Where it was read from, for messages: a file's name in the library or a plugin's name."""

    @property
    def key(self) -> str:
        """`<model slug>/<dataset slug>`, the name it is shown and found under, unique in a library."""
        return f"{slug(self.document['model']['id'])}/{slug(self.document['dataset']['id'])}"

    @property
    def num_layers(self) -> int:
        """The model's depth."""
        return int(self.document["model"]["num_layers"])

    @property
    def status(self) -> Status:
        """`reproduced` where a second run agreed within the stated tolerance."""
        status: Status = self.document["status"]
        return status

    @property
    def is_measured(self) -> bool:
        """Whether it was measured with layercard; published cards have no per-layer ranks and cannot match."""
        return bool(self.document["provenance"]["kind"] == "measured")

    @property
    def fingerprint(self) -> str | None:
        """The digest of the model's shape and weights; None in published cards."""
        digest: str | None = self.document["model"].get("fingerprint")
        return digest

    @property
    def targets(self) -> frozenset[str]:
        """The target modules that were adapted; empty where a publication does not name them."""
        return frozenset(self.document["lora"]["targets"] or ())

    def importance(self, score: str) -> Array | None:
        """Return (layers,) the importance by `score`, or None where the card does not hold it."""
        rows = self.document.get("layers", [])
        if not rows or score not in rows[0]["scores"]:
            return None
        return np.array([row["scores"][score]["importance"] for row in rows], dtype=np.float64)

    @property
    def outcomes(self) -> dict[str, Outcome]:
        """Every set of layers that was tried, by name; `all_layers` and `untuned` among them where known."""
        return {row["name"]: _outcome(row) for row in self.document["outcomes"]}

    @property
    def main_metric(self) -> str:
        """The metric that gains are counted in: `heldout_loss` in measured cards."""
        return str(self.document["main_metric"])

    def gain(self, name: str) -> float | None:
        """Return how much better than untuned an outcome is in the main metric, above 0 if better; None if unknown."""
        tuned, untuned = (self.outcomes.get(n) for n in (name, "untuned"))
        if tuned is None or untuned is None:
            return None
        after, before = (o.metrics.get(self.main_metric) for o in (tuned, untuned))
        if after is None or before is None:
            return None
        return after.value - before.value if after.direction == "higher" else before.value - after.value

    def share_kept(self, name: str) -> float | None:
        """Return the gain of an outcome over that of all-layer LoRA; None where unknown or all-layer gained nothing."""
        gain, reference = self.gain(name), self.gain("all_layers")
        if gain is None or reference is None or reference <= 0:
            return None
        return gain / reference

    def relative_to_all_layers(self, name: str) -> float | None:
        """Return an outcome's main metric over that of all-layer LoRA, where higher is better; None where unknown."""
        outcome, reference = (self.outcomes.get(n) for n in (name, "all_layers"))
        if outcome is None or reference is None:
            return None
        value, whole = (o.metrics.get(self.main_metric) for o in (outcome, reference))
        if value is None or whole is None or whole.direction == "lower" or whole.value <= 0:
            return None
        return value.value / whole.value

    @property
    def best(self) -> str | None:
        """The name of the set of layers, all of them apart, that did best in the main metric; None where none is known."""
        found = {n: o.metrics[self.main_metric] for n, o in self.outcomes.items() if self._rivals(o)}
        if not found:
            return None
        return max(found, key=lambda n: found[n].value if found[n].direction == "higher" else -found[n].value)

    def _rivals(self, outcome: Outcome) -> bool:
        return outcome.kind != "reference" and self.main_metric in outcome.metrics


def slug(text: str) -> str:
    """Return the last part of an id as a file name: lower case, letters, digits, dots and hyphens."""
    kept = [c if c.isalnum() or c in ".-" else "-" for c in text.rsplit("/", 1)[-1].lower()]
    return "".join(kept).strip("-.")


def _outcome(row: Mapping[str, Any]) -> Outcome:
    metrics = {
        name: Metric(name, m["value"], m["direction"], tuple(m.get("seeds") or ()))
        for name, m in row["metrics"].items()
    }
    layers, bounds, cost = row.get("layers"), row.get("resnorm_range"), row.get("cost") or {}
    return Outcome(
        name=row["name"],
        kind=row["kind"],
        layers=None if layers is None else tuple(layers),
        count=row.get("count", None if layers is None else len(layers)),
        resnorm_range=None if bounds is None else (bounds[0], bounds[1]),
        metrics=metrics,
        step_seconds_ratio=cost.get("step_seconds_ratio"),
        peak_memory_ratio=cost.get("peak_memory_ratio"),
    )
