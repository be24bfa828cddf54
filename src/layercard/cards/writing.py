"""Writes Layer Cards: atomically, keys sorted, one layer and one outcome a line, so that a review shows what changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layercard.cards.card import LayerCard
from layercard.cards.schema import check_card
from layercard.files import write_text

ONE_A_LINE = ("layers", "outcomes")
"""Lists whose entries get a line each."""


def card_text(document: Mapping[str, Any]) -> str:
    """Return the JSON text of a card; the same document gives the same text, whatever the order of its keys."""
    lines = [f"  {json.dumps(key)}: {_value(key, document[key])}" for key in sorted(document)]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _value(key: str, value: Any) -> str:
    if key in ONE_A_LINE and isinstance(value, list) and value:
        rows = ",\n".join(
            f"    {json.dumps(row, sort_keys=True, allow_nan=False, ensure_ascii=False)}" for row in value
        )
        return f"[\n{rows}\n  ]"
    text = json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False, indent=2)
    return text.replace("\n", "\n  ")


def save_card(card: LayerCard, path: Path) -> None:
    """Write a card atomically, its folder made where it is missing; raise `CardError` where it is none."""
    check_card(card.document, card.source)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, card_text(card.document))
