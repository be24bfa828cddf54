"""What a Layer Card must hold: the published JSON Schema, and after it what its fields say about each other.

`layer_card.schema.json` beside this file is the schema, for other tools too. Fields that it does not name are kept. A
card of a later `schema_version` is refused by that number: what it means is not known here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from layercard.cards import consistency
from layercard.cards.card import LayerCard
from layercard.errors import CardError

SCHEMA_VERSION = 1
SHOWN = 5
"""How many problems one error names."""


def schema() -> dict[str, Any]:
    """Return the published JSON Schema (draft 2020-12)."""
    text = files("layercard.cards").joinpath("layer_card.schema.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def problems(document: Any) -> list[str]:
    """Return everything that is wrong with a document, one line each, the field first; empty for a Layer Card."""
    if not isinstance(document, Mapping):
        return [f"it holds a {type(document).__name__}; a Layer Card is a JSON object"]
    version = document.get("schema_version")
    if isinstance(version, int) and not isinstance(version, bool) and version > SCHEMA_VERSION:
        return [
            f"`schema_version` is {version}, and this layercard reads up to {SCHEMA_VERSION}; install a later layercard"
        ]
    found = [*_not_finite(document), *_against_schema(document)]
    return [_one_line(problem) for problem in found or consistency.problems(document)]


def _one_line(problem: str) -> str:
    """Show what cannot be printed, such as a line break in a field's name, as its escape."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in problem)


def check_card(document: Any, source: str) -> LayerCard:
    """Return the card that a document holds; `source` names it in messages. Raises `CardError` with what is wrong."""
    found = problems(document)
    if found:
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise CardError(f"{source}: {'; '.join(found[:SHOWN])}{more}.")
    return LayerCard(document, source)


@cache
def _validator() -> Any:
    from jsonschema import Draft202012Validator, validators

    def is_integer(checker: Any, value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)  # 3.0 is no layer's number

    types = Draft202012Validator.TYPE_CHECKER.redefine("integer", is_integer)
    return validators.extend(Draft202012Validator, type_checker=types)(schema())


def _against_schema(document: Mapping[str, Any]) -> Iterator[str]:
    errors = sorted(_validator().iter_errors(document), key=lambda error: [str(part) for part in error.absolute_path])
    for error in errors:
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path).lstrip(
            "."
        )
        yield f"`{where}`: {_short(error.message)}" if where else _short(error.message)


def _short(message: str) -> str:
    line = " ".join(message.split())
    return line if len(line) <= 200 else f"{line[:80]} … {line[-110:]}"


def _not_finite(value: Any, where: str = "") -> Iterator[str]:
    """Numbers that JSON or a double cannot hold, wherever they stand, unknown fields included."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _not_finite(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _not_finite(item, f"{where}[{index}]")
    elif (isinstance(value, float) and not math.isfinite(value)) or (isinstance(value, int) and abs(value) > 2**63):
        yield f"`{where}` is not a finite number"
