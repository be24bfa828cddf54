"""The tables of one Layer Card: what each set of layers reached and cost, and the scores of every layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from layercard.cli.cards.words import UNKNOWN, achieved, kept, number, share, speed
from layercard.sizes import bytes_text

if TYPE_CHECKING:
    from layercard.cards.card import LayerCard

SHOWN_SCORES = 5
"""As many columns of scores at most."""
SCORE_CELLS, OTHER_CELLS = 11, 13
"""Cells of a terminal that such a column takes, and those of the layers and regimes."""
OWN_COLUMN = ("step_seconds_ratio", "peak_memory_ratio")
LABELS = {"peak_bytes": "peak", "step_seconds": "seconds", "step_seconds_interval": "step interval"}


def outcomes_table(card: LayerCard) -> Table:
    """Return a row a set of layers: the main metric, the share kept, speed and memory beside all-layer LoRA's."""
    table = Table(title="What each set of layers reached and cost", title_justify="left", box=None, pad_edge=False)
    for heading in ("layers adapted", "count", card.main_metric, "kept", "speed", "memory"):
        table.add_column(heading, justify="left" if heading == "layers adapted" else "right")
    for name, outcome in card.outcomes.items():
        found = achieved(card, name)
        count = UNKNOWN if outcome.count is None else str(outcome.count)
        costs = [speed(outcome.step_seconds_ratio), share(outcome.peak_memory_ratio)]
        table.add_row(*map(Text, [name, count, number(found["value"]), kept(found), *costs]))
    return table


def others_table(card: LayerCard) -> Table | None:
    """Return a row for every set of layers, a column for every other metric and cost; None where there is no other."""
    rows = {row["name"]: dict(_others(row, card.main_metric)) for row in card.document["outcomes"]}
    labels = dict.fromkeys(label for found in rows.values() for label in found)
    if not labels:
        return None
    table = Table(title="Other metrics and costs", title_justify="left", box=None, pad_edge=False)
    table.add_column("layers adapted", no_wrap=True)
    for label in labels:
        table.add_column(label, justify="right", overflow="fold")
    for name, found in rows.items():
        if found:
            table.add_row(*map(Text, [name, *(found.get(label, UNKNOWN) for label in labels)]))
    return table


def shown_scores(card: LayerCard, width: int) -> list[str]:
    """Return the first scores of a card, as many as a terminal of `width` cells holds."""
    return scores_of(card)[: max(1, min(SHOWN_SCORES, (width - OTHER_CELLS) // SCORE_CELLS))]


def layers_table(card: LayerCard, scores: Sequence[str]) -> Table:
    """Return a row a layer: its importance by these scores, and the regime it is in."""
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
            yield LABELS.get(name, name.replace("_", " ")), value


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}: ")
        elif value is not None:
            yield before + name, _shown(name, value)


def _shown(name: str, value: Any) -> str:
    if isinstance(value, list):
        return "–".join(f"{x:.2f}" if isinstance(x, float) else str(x) for x in value)
    if name == "peak_bytes":
        return bytes_text(value)
    return number(value) if isinstance(value, float) else str(value)
