"""What a Layer Card's fields say about each other, beyond the JSON Schema: counts, ranges, derived numbers.

Every function takes a document that has passed the schema and yields problems, each one line that names the field.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

from layercard.cards.card import LayerCard, slug
from layercard.cards.privacy import leaks
from layercard.cards.strata import REGIMES

Document = Mapping[str, Any]
TOLERANCE = 1e-5
"""How far a derived number may be from what it is derived from, relative to its size where that is above 1."""


def problems(document: Document) -> Iterator[str]:
    """Yield every contradiction and everything that must not be shared in a card that has passed the schema."""
    found = [problem for check in SHAPE for problem in check(document)]
    yield from found or (problem for check in DERIVED for problem in check(document))


def _names(document: Document) -> Iterator[str]:
    for part in ("model", "dataset"):
        if not slug(document[part]["id"]):
            yield f"`{part}.id` is {document[part]['id']!r}, which leaves no file name; use letters and digits"


def _privacy(document: Document) -> Iterator[str]:
    for where, what in leaks(document):
        yield f"`{where}` holds {what}, which must not be shared; take it out"


def _status(document: Document) -> Iterator[str]:
    if document["status"] != "reproduced":
        return
    made_twice = document.get("reproduction")
    if made_twice is None:
        yield "`status` is 'reproduced' and `reproduction` does not say within which tolerance; state it or use 'community'"
    elif made_twice["largest_difference"] > made_twice["tolerance"]:
        yield (
            f"`reproduction.largest_difference` is {made_twice['largest_difference']}, above the tolerance of "
            f"{made_twice['tolerance']}; such a card is 'community'"
        )
    if document.get("quick"):
        yield "`quick` marks a smoke card, which cannot be 'reproduced'; build it in full"


def _layers(document: Document) -> Iterator[str]:
    rows, depth = document["layers"], document["model"]["num_layers"]
    if not rows:
        return
    found = [row["layer"] for row in rows]
    twice = sorted({layer for layer in found if found.count(layer) > 1})
    missing = sorted(set(range(depth)) - set(found))
    outside = sorted(layer for layer in set(found) if layer >= depth)
    if twice:
        yield f"`layers` names layer {twice[0]} more than once"
    if missing:
        yield f"`layers` lacks layer {missing[0]} of {depth} (`model.num_layers`); {len(missing)} are missing"
    if outside:
        yield f"`layers` names layer {outside[0]}, and the model has layers 0–{depth - 1}"
    if not (twice or missing or outside) and found != list(range(depth)):
        yield "`layers` is not in order; write layer 0 first"


def _scores(document: Document) -> Iterator[str]:
    named = set(document["scorers"])
    for row in document["layers"]:
        held = set(row["scores"])
        if held != named:
            odd = sorted(held ^ named)[0]
            yield f"`layers[{row['layer']}].scores` and `scorers` disagree about `{odd}`; both name every score"
            return


def _outcomes(document: Document) -> Iterator[str]:
    depth = document["model"]["num_layers"]
    names = [row["name"] for row in document["outcomes"]]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"`outcomes` holds `{name}` more than once"
    for row in document["outcomes"]:
        where, layers, count = f"`outcomes` of `{row['name']}`", row.get("layers"), row.get("count")
        if layers is not None and layers != sorted(set(layers)):
            yield f"{where}: `layers` must be ascending and named once"
        for layer in layers or ():
            if layer >= depth:
                yield f"{where}: layer {layer} is out of range, the model has layers 0–{depth - 1}"
        if count is not None and count > depth:
            yield f"{where}: `count` is {count}, and the model has {depth} layers"
        if layers is not None and count is not None and count != len(layers):
            yield f"{where}: `count` is {count} and `layers` names {len(layers)}"


def _regimes(document: Document) -> Iterator[str]:
    """The regimes of a card with resnorm are its own strata, and their ranges what its layers say."""
    card = LayerCard(document, "")
    resnorm, found = card.importance("resnorm"), card.outcomes
    if resnorm is None:
        return
    for name, outcome in found.items():
        if outcome.layers and outcome.resnorm_range is not None:
            held = resnorm[list(outcome.layers)]
            if not _close(outcome.resnorm_range, (held.min(), held.max())):
                yield f"`outcomes` of `{name}`: `resnorm_range` is not that of its layers"
    strata = [found[name] for name in REGIMES if name in found]
    for upper, lower in pairwise(strata):
        if upper.layers and lower.layers and min(resnorm[list(upper.layers)]) < max(resnorm[list(lower.layers)]):
            yield f"`outcomes`: layers of `{lower.name}` have a higher resnorm than layers of `{upper.name}`"


def _metrics(document: Document) -> Iterator[str]:
    directions: dict[str, str] = {}
    for row in document["outcomes"]:
        for name, metric in row["metrics"].items():
            if directions.setdefault(name, metric["direction"]) != metric["direction"]:
                yield f"`outcomes`: the metric `{name}` is better both higher and lower; choose one"
            seeds = metric.get("seeds")
            if seeds and not _close((sum(seeds) / len(seeds),), (metric["value"],)):
                yield f"`outcomes` of `{row['name']}`: `{name}.value` is not the mean of its seeds"
    main = document["main_metric"]
    measured = document["provenance"]["kind"] == "measured"
    lacking = [row["name"] for row in document["outcomes"] if main not in row["metrics"]]
    if main not in directions or (measured and lacking):
        yield f"`main_metric` is {main!r}, which the outcome `{lacking[0]}` does not hold"


def _gains(document: Document) -> Iterator[str]:
    card = LayerCard(document, "")
    for row in document["outcomes"]:
        stated, found = row.get("gain"), card.gain(row["name"])
        if stated is None or stated["metric"] != document["main_metric"]:
            continue
        if found is None:
            yield f"`outcomes` of `{row['name']}`: `gain` needs the outcome `untuned`"
        elif not _close((stated["value"],), (found,)):
            yield f"`outcomes` of `{row['name']}`: `gain.value` is {stated['value']}, and the metrics give {found:.6g}"


def _close(stated: tuple[float, ...], derived: tuple[float, ...]) -> bool:
    return all(math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE) for a, b in zip(stated, derived, strict=True))


Check = Callable[[Document], Iterator[str]]
SHAPE: tuple[Check, ...] = (_names, _privacy, _status, _layers, _scores, _outcomes)
DERIVED: tuple[Check, ...] = (_regimes, _metrics, _gains)
"""These index layers and outcomes, so they come after the others have passed."""
