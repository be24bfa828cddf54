"""What differs between the run that a Layer Card was measured in and the one it is asked about.

None of it keeps a card from being used; all of it is listed, for whoever reads the placement to judge.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from layercard.cards.card import LayerCard
from layercard.cards.query import CardQuery

FACTS = (
    ("lora", "rank", "LoRA rank"),
    ("lora", "alpha", "LoRA alpha"),
    ("training", "max_length", "sequence length"),
    ("dataset", "columns", "columns"),
    ("dataset", "template", "template"),
)
"""Section and field of a card, and what people call it."""
MODEL = (("quantization", "quantization"), ("dtype", "dtype"))


def template_digest(template: str) -> str:
    """Return what stands for a chat template under `dataset.template`, for templates are long."""
    return f"sha256:{hashlib.sha256(template.encode()).hexdigest()[:16]}"


def differences(card: LayerCard, query: CardQuery) -> tuple[str, ...]:
    """Return one phrase for each thing that both sides know and that differs."""
    return tuple(
        f"{name} {_shown(here)} here, {_shown(there)} on the card" for name, here, there in _pairs(card, query)
    )


def measured_otherwise(by_card: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return a sentence for each set of differences, naming the cards, by key, that have it."""
    cards: dict[tuple[str, ...], list[str]] = {}
    for key, found in by_card.items():
        if found:
            cards.setdefault(found, []).append(key)
    return tuple(
        f"Layer Card{'s' * (len(keys) > 1)} {', '.join(keys)} {'was' if len(keys) == 1 else 'were'} measured otherwise: "
        f"{', '.join(found)}."
        for found, keys in cards.items()
    )


def _pairs(card: LayerCard, query: CardQuery) -> Iterator[tuple[str, Any, Any]]:
    for section, field, name in FACTS:
        there, here = _section(card, section).get(field), query.facts.get(field)
        if there is not None and here is not None and _differ(here, there):
            yield name, here, there
    known = _section(card, "model")
    for field, name in MODEL:
        if field in known and known[field] != query.model.get(field):
            yield name, query.model.get(field), known[field]
    if known.get("gguf") and card.fingerprint != query.model["fingerprint"]:
        yield "weights", "as they were loaded", f"made from a GGUF file of {known['gguf']}"


def _differ(here: Any, there: Any) -> bool:
    """Whether they differ in what both say: of columns only some may be named."""
    if isinstance(here, Mapping) and isinstance(there, Mapping):
        return any(here[part] != there[part] for part in here.keys() & there.keys())
    return bool(here != there)


def _section(card: LayerCard, name: str) -> Mapping[str, Any]:
    return card.document.get(name) or {}


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)
