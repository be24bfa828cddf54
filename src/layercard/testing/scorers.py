"""`check_scorer`: whether a scorer can rank the layers of any model that the probe can read.

It runs real probes of a tiny Llama, gives the scorer the statistics that it declares and no others, and compares what it
makes of the same examples in another order and in other batches.
"""

from __future__ import annotations

import copy
from dataclasses import fields
from typing import Any, get_args

import numpy as np
from torch import nn

from layercard.anatomy.layers import find_layers
from layercard.probing.run import run_probe
from layercard.probing.statistics import Array, LayerStatistics, Need
from layercard.scores.base import LayerScores, Scorer
from layercard.testing.material import batches, examples, tiny_llama

EXAMPLES = 12
DEPTHS = (4, 7)
RELATIVE = 1e-4
"""How far two probes of the same examples may differ: their sums run in float32 and in another order."""


def check_scorer(scorer: Scorer) -> None:
    """Raise `AssertionError` unless `scorer` gives one finite importance a layer, from its declared needs alone.

    Checked on models of 4 and 7 layers: name and needs; the shape and finiteness of `importance` and `raw`; that neither
    the order of the examples nor the batches change them; that a second call gives the same; that statistics are left as
    they came.
    """
    _check_declaration(scorer)
    sequences = examples(EXAMPLES)
    for depth in DEPTHS:
        model = tiny_llama(depth)
        statistics = _probed(model, scorer, batches(sequences, 4))
        found = _scored(scorer, statistics)
        _same(found, _scored(scorer, statistics), f"`{scorer.name}` called twice on the same statistics", exact=True)
        reverse = _scored(scorer, _probed(model, scorer, batches(sequences[::-1], 4)))
        _same(found, reverse, f"`{scorer.name}` on the same examples in reverse order")
        single = _scored(scorer, _probed(model, scorer, batches(sequences, 1)))
        _same(found, single, f"`{scorer.name}` on the same examples one to a batch")


def _check_declaration(scorer: Scorer) -> None:
    if not isinstance(scorer.name, str) or not scorer.name.isidentifier():
        raise AssertionError(f"The scorer's name is {scorer.name!r}. Users write it as one word, such as `resnorm`.")
    unknown = set(scorer.needs) - set(get_args(Need))
    if unknown or not isinstance(scorer.needs, frozenset):
        raise AssertionError(
            f"`{scorer.name}` needs {scorer.needs!r}. Needs are a frozenset of {', '.join(get_args(Need))}."
        )


def _probed(model: nn.Module, scorer: Scorer, held: list[dict[str, Any]]) -> LayerStatistics:
    return run_probe(model, held, stack=find_layers(model), needs=scorer.needs, show_progress=False)


def _scored(scorer: Scorer, statistics: LayerStatistics) -> LayerScores:
    given = copy.deepcopy(statistics)
    try:
        scores = scorer.score(given)
    except Exception as error:
        error.add_note(
            f"`{scorer.name}` declares the needs {set(scorer.needs) or '{}'}; every other statistic is None."
        )
        raise
    for name, before in _arrays(statistics).items():
        if not np.array_equal(before, _arrays(given)[name], equal_nan=True):
            raise AssertionError(
                f"`{scorer.name}` changed `{name}` of the statistics it was given; other scorers read it."
            )
    if scores.name != scorer.name:
        raise AssertionError(f"`{scorer.name}` returned scores named {scores.name!r}. Both names are the same.")
    for field in ("importance", "raw"):
        values = getattr(scores, field)
        shape = getattr(values, "shape", None)
        if shape != (statistics.num_layers,):
            raise AssertionError(
                f"`{scorer.name}` returned `{field}` of shape {shape} for {statistics.num_layers} layers. It is a numpy array "
                "of one number a layer."
            )
    bad = np.flatnonzero(~np.isfinite(scores.importance))
    if bad.size:
        raise AssertionError(
            f"`{scorer.name}` gave layer {bad[0]} of {statistics.num_layers} the importance {scores.importance[bad[0]]}. "
            "Every layer that has target modules gets a finite number."
        )
    return scores


def _arrays(statistics: LayerStatistics) -> dict[str, Array]:
    held = {field.name: getattr(statistics, field.name) for field in fields(statistics)}
    return {name: value for name, value in held.items() if isinstance(value, np.ndarray)}


def _same(one: LayerScores, other: LayerScores, what: str, *, exact: bool = False) -> None:
    tolerance = 0.0 if exact else RELATIVE * float(np.abs(one.importance).max())
    off = np.abs(one.importance - other.importance)
    if float(off.max()) > tolerance:
        layer = int(off.argmax())
        raise AssertionError(
            f"{what} gave layer {layer} another importance: {one.importance[layer]:.6g} and {other.importance[layer]:.6g}. "
            "A score depends on the examples alone."
        )
