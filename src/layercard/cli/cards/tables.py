"""The tables of one Layer Card: what each set of layers reached and cost, and the scores of every layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from layercard.cli.cards.words import UNKNOWN, achieved, kept, number, ratio

if TYPE_CHECKING:
    from layercard.cards.card import LayerCard

SHOWN_SCORES = 5
"""As many columns of scores as a terminal holds."""
OWN_COLUMN = ("step_seconds_ratio", "peak_memory_ratio")


def outcomes_table(card: LayerCard) -> Table:
    """Return a row a set of layers: the main metric, the share kept, step and memory over all-layer LoRA."""
    table = Table(title="What each set of layers reached and cost", title_justify="left", box=None, pad_edge=False)
    for heading in ("layers adapted", "count", card.main_metric, "kept", "step", "memory"):
        table.add_column(heading, justify="left" if heading == "layers adapted" else "right")
    for name, outcome in card.outcomes.items():
        found = achieved(card, name)
        count = UNKNOWN if outcome.count is None else str(outcome.count)
        costs = [ratio(outcome.step_seconds_ratio), ratio(outcome.peak_memory_ratio)]
        table.add_row(*map(Text, [name, count, number(found["value"]), kept(found), *costs]))
    return table


def others_table(card: LayerCard) -> Table | None:
    """Return a row for every other metric and cost, a column a set of layers; None where there is no other."""
    columns = {row["name"]: dict(_others(row, card.main_metric)) for row in card.document["outcomes"]}
    columns = {name: found for name, found in columns.items() if found}
    if not columns:
        return None
    table = Table(title="Other metrics and costs", title_justify="left", box=None, pad_edge=False)
    table.add_column("", overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", overflow="fold")
    for label in dict.fromkeys(label for found in columns.values() for label in found):
        table.add_row(*map(Text, [label, *(found.get(label, UNKNOWN) for found in columns.values())]))
    return table


def layers_table(card: LayerCard) -> Table:
    """Return a row a layer: its importance by the first scores, and the regime it is in."""
    scores = scores_of(card)[:SHOWN_SCORES]
    regimes = {layer: o.name for o in card.outcomes.values() if o.kind == "regime" for layer in o.layers or ()}
    table = Table(title="Importance by layer, 0 at the input", title_justify="left", box=None, pad_edge=False)
    for heading in ("layer", *scores, "regime"):
        table.add_column(heading, justify="left" if heading == "regime" else "right", overflow="fold")
    for row in card.document["layers"]:
        numbers = [number(row["scores"][score]["importance"]) for score in scores]
        table.add_row(*map(Text, [str(row["layer"]), *numbers, regimes.get(row["layer"], "")]))
    return table


def scores_of(card: LayerCard) -> list[str]:
    """Return the scores that a card holds, resnorm first."""
    return sorted(card.document["scorers"], key=lambda name: (name != "resnorm", name))


def _others(row: Mapping[str, Any], main_metric: str) -> Iterator[tuple[str, str]]:
    for name, metric in row["metrics"].items():
        if name != main_metric:
            yield f"{name} {'↑' if metric['direction'] == 'higher' else '↓'}", number(metric["value"])
    for name, value in _flat(row.get("cost") or {}):
        if name not in OWN_COLUMN:
            yield name.replace("_", " "), value


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}: ")
        elif isinstance(value, list):
            yield before + name, "–".join(map(_shown, value))
        elif value is not None:
            yield before + name, _shown(value)


def _shown(value: Any) -> str:
    return f"{value:,}" if type(value) is int else number(value) if isinstance(value, float) else str(value)
