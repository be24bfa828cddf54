"""Strata: every layer in one of them, ordered by importance, as even as can be."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layercard.cards.strata import REGIMES, regimes, stratify
from layercard.errors import ProbeError
from layercard.scores.base import LayerScores

numbers = st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=40)


@given(numbers, st.integers(1, 3))
def test_strata_partition_the_layers_by_falling_importance(values: list[float], parts: int) -> None:
    strata = stratify(values, parts)
    assert sorted(layer for stratum in strata for layer in stratum) == list(range(len(values)))
    sizes = [len(stratum) for stratum in strata]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1
    for upper, lower in pairwise(strata):
        assert min(values[i] for i in upper) >= max(values[i] for i in lower)
    assert all(list(stratum) == sorted(stratum) for stratum in strata)


@given(numbers)
def test_the_first_stratum_is_what_the_scores_rank_first(values: list[float]) -> None:
    array = np.array(values)
    high = stratify(array)[0]
    assert set(high) == set(LayerScores("s", array, array).ranked()[: len(high)])


def test_regimes_are_the_three_strata_by_name() -> None:
    assert regimes([5.0, 1.0, 3.0, 4.0]) == {"high": (0, 3), "mid": (2,), "low": (1,)}
    assert tuple(regimes([1.0, 2.0, 3.0])) == REGIMES


@pytest.mark.parametrize(("values", "match"), [([1.0, float("nan"), 2.0], "layer 1 of 3"), ([1.0, 2.0], "2 layers")])
def test_what_cannot_be_ranked_is_refused(values: list[float], match: str) -> None:
    with pytest.raises(ProbeError, match=match):
        stratify(values)
