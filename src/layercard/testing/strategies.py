"""`check_strategy`: whether a strategy picks layers that can be adapted, whatever it is asked.

It asks for every count on models of several depths, with and without `min_entry`, with scores that tie, fall, rise and
are negative, with predicted step times, and compares answers to the same request.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import get_args

import numpy as np

from layercard.cost.predict import predict_step_ratio
from layercard.placement.strategies import By, Strategy, StrategyRequest
from layercard.probing.statistics import Array
from layercard.scores.base import LayerScores

DEPTHS = (1, 2, 5, 12)
SEEDS = (0, 1)


def check_strategy(strategy: Strategy) -> None:
    """Raise `AssertionError` unless `strategy` answers every request with layers that may be chosen.

    Checked: name and `by`; that answers hold candidates alone, ascending, each once, at least one; that the same request
    gets the same answer; that only strategies by chance go by the seed, and none by the scores of layers that are no
    candidates.
    """
    if not isinstance(strategy.name, str) or not strategy.name.isidentifier():
        raise AssertionError(
            f"The strategy's name is {strategy.name!r}. Users write it as one word, such as `uniform`."
        )
    if strategy.by not in get_args(By):
        raise AssertionError(f"`{strategy.name}` goes by {strategy.by!r}. It is one of {', '.join(get_args(By))}.")
    for request in _requests(scored=strategy.by == "score"):
        chosen = _answer(strategy, request)
        _same(strategy, request, chosen, request, "the same request, asked again")
        if strategy.by != "chance":
            _same(strategy, request, chosen, replace(request, seed=request.seed + 1), "another seed")
        if request.scores is not None:
            _same(strategy, request, chosen, _other_scores_below(request), "other scores of layers below `min_entry`")


def _requests(*, scored: bool) -> Iterator[StrategyRequest]:
    for depth in DEPTHS:
        for entry in sorted({0, depth // 3, depth - 1}):
            for count in range(1, depth - entry + 1):
                for importance in _importances(depth) if scored else [None]:
                    scores = None if importance is None else LayerScores("checked", importance, importance)
                    for seed in SEEDS:
                        yield StrategyRequest(
                            depth, count, scores=scores, min_entry=entry, seed=seed,
                            step_ratio=partial(predict_step_ratio, depth, checkpointing=True),
                        )  # fmt: skip


def _importances(depth: int) -> list[Array]:
    steps = np.arange(depth, dtype=np.float64)
    return [np.ones(depth), steps, -steps, np.sin(1.0 + 5.0 * steps)]


def _answer(strategy: Strategy, request: StrategyRequest) -> tuple[int, ...]:
    chosen = strategy.choose(request)
    wrong = [layer for layer in chosen if layer not in request.candidates]
    if not isinstance(chosen, tuple) or not chosen or wrong or list(chosen) != sorted(set(chosen)):
        raise AssertionError(
            f"`{strategy.name}` answered {chosen!r} when asked for {request.count} of the layers {list(request.candidates)}. An "
            "answer is a tuple of some of them, at least one, ascending, each once."
        )
    return chosen


def _same(
    strategy: Strategy, request: StrategyRequest, chosen: tuple[int, ...], other: StrategyRequest, what: str
) -> None:
    found = _answer(strategy, other)
    if found != chosen:
        raise AssertionError(
            f"`{strategy.name}` chose {list(chosen)} when asked for {request.count} of {list(request.candidates)}, and "
            f"{list(found)} for {what}."
        )


def _other_scores_below(request: StrategyRequest) -> StrategyRequest:
    assert request.scores is not None
    importance = request.scores.importance.copy()
    importance[[layer for layer in range(request.num_layers) if layer not in request.candidates]] += 100.0
    return replace(request, scores=replace(request.scores, importance=importance))
