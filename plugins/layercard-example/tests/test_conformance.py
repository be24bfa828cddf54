"""One line a piece: what a plugin's author writes first."""

from __future__ import annotations

from layercard.testing import check_scorer, check_strategy
from layercard_example.deep_energy import DeepEnergy
from layercard_example.odd_layers import OddLayers


def test_the_scorer_ranks_any_model() -> None:
    check_scorer(DeepEnergy())


def test_the_strategy_answers_any_request() -> None:
    check_strategy(OddLayers())
