"""Settings and a depth become a placement, or an error that names the setting and the depth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layercard import LayerPlacement, PlacementSettings, hookimpl
from layercard.errors import PlacementError, SettingsError
from layercard.placement.choose import choose_placement, needed_score
from layercard.placement.rates import learning_rate_hint
from layercard.placement.strategies import StrategyRequest
from layercard.plugins import build_manager, strategies
from layercard.scores.base import LayerScores

KNOWN = strategies(build_manager(entry_points=False))
DEPTH = 12
FALLING = np.arange(DEPTH, 0, -1.0)
SCORES = {name: LayerScores(name, sign * FALLING, FALLING) for name, sign in (("resnorm", 1), ("cka", -1))}


def place(lora_layers: Any = "auto", depth: int = DEPTH, **values: Any) -> LayerPlacement:
    settings = PlacementSettings.from_user(lora_layers, **values)
    return choose_placement(settings, depth, strategies=KNOWN, scores=SCORES)


def needed(lora_layers: Any = "auto", **values: Any) -> str | None:
    return needed_score(PlacementSettings.from_user(lora_layers, **values), KNOWN)


def test_only_strategies_by_score_need_one() -> None:
    assert [needed(name) for name in ("high", "mid", "low", "cumulative")] == ["resnorm"] * 4
    assert needed("high", score="cka") == "cka"
    for choice in ("auto", "first", "uniform", "random", [1, 2], "placement.json"):
        assert needed(choice) is None


@pytest.mark.parametrize("choice", ["auto", "uniform", "random", [1, 2], "placement.json"])
def test_a_score_that_would_not_be_read_is_refused(choice: Any) -> None:
    with pytest.raises(SettingsError, match=r"`score` is 'cka'.*reads no score"):
        needed(choice, score="cka")


def test_a_strategy_by_score_reads_the_score_it_was_asked_for() -> None:
    assert place({"strategy": "high", "num_layers": 3}).layers == (0, 1, 2)
    assert place({"strategy": "high", "num_layers": 3, "score": "cka"}).layers == (9, 10, 11)
    placement = place({"strategy": "mid", "num_layers": 2})
    assert (placement.layers, placement.strategy, placement.score) == ((5, 6), "mid", "resnorm")
    assert "resnorm" in placement.reason


def test_a_third_of_the_layers_is_adapted_where_no_number_is_given() -> None:
    assert len(place("uniform").layers) == 4
    assert len(place("last", depth=13).layers) == 5
    assert len(place("last", depth=1).layers) == 1
    assert place("last", min_entry=10).layers == (10, 11)


def test_a_fraction_is_of_all_layers_and_never_none() -> None:
    assert len(place("last", fraction=0.5).layers) == 6
    assert len(place("last", fraction=0.01).layers) == 1
    assert place("last", fraction=1.0).is_all


def test_indices_are_taken_as_they_are() -> None:
    placement = place([7, 3])
    assert (placement.layers, placement.strategy) == ((3, 7), "indices")


def test_a_saved_placement_is_read_and_must_fit_the_depth(tmp_path: Path) -> None:
    path = tmp_path / "placement.json"
    saved = place("last")
    saved.save(path)
    assert place(path) == saved
    with pytest.raises(PlacementError, match="made for 12 layers and the model has 6"):
        choose_placement(PlacementSettings.from_user(path), 6, strategies=KNOWN)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lora_layers": [3, 12]}, r"`indices` holds layer 12, and the model has layers 0–11"),
        (
            {"lora_layers": "last", "num_layers": 13},
            r"`num_layers` is 13.*the model has 12\. Ask for at most 12",
        ),
        (
            {"lora_layers": "last", "num_layers": 5, "min_entry": 8},
            r"`min_entry` \(8\) leaves 4\. Ask for at most 4",
        ),
        (
            {"lora_layers": "last", "fraction": 0.9, "min_entry": 8},
            r"`fraction` is 0\.9, which asks for 11 layers",
        ),
        ({"lora_layers": "last", "min_entry": 12}, r"`min_entry` is 12, and the model has layers 0–11"),
        ({"lora_layers": "auto", "min_entry": 40}, r"`min_entry` is 40"),
        ({"lora_layers": "unifrom"}, r"`strategy` is 'unifrom'.*Did you mean `uniform`\?"),
        (
            {"lora_layers": "high", "cumulative_threshold": 0.5},
            r"`cumulative_threshold` is 0\.5.*`high` does not read it",
        ),
        ({"lora_layers": "auto", "cumulative_threshold": 0.5}, r"`auto` does not read it"),
        ({"lora_layers": "cumulative", "fraction": 0.5}, r"`fraction` is given.*finds the number itself"),
    ],
)
def test_what_does_not_fit_is_an_error_that_names_it(values: dict[str, Any], message: str) -> None:
    settings = PlacementSettings.from_user(**values)
    with pytest.raises(SettingsError, match=message):
        choose_placement(settings, DEPTH, strategies=KNOWN, scores=SCORES)


def test_cumulative_reaches_three_quarters_where_no_threshold_is_given() -> None:
    by_default, by_hand = place("cumulative"), place("cumulative", cumulative_threshold=0.75)
    assert by_default == by_hand
    assert "75%" in by_default.reason


def test_a_plugin_strategy_may_find_its_own_number_and_must_stay_within_bounds() -> None:
    @dataclass(frozen=True)
    class Fixed:
        name: str
        layers: tuple[int, ...]
        by: str = "depth"

        def choose(self, request: StrategyRequest) -> tuple[int, ...]:
            return self.layers

    class Plugin:
        @staticmethod
        @hookimpl
        def register_strategies(register: Any) -> None:
            for strategy in (
                Fixed("odd", (1, 3, 5)),
                Fixed("beyond", (1, 99)),
                Fixed("twice", (1, 1)),
                Fixed("empty", ()),
            ):
                register(strategy)

    known = strategies(build_manager([("mine", Plugin)], entry_points=False))
    assert choose_placement(PlacementSettings.from_user("odd"), 6, strategies=known).layers == (1, 3, 5)
    for name in ("beyond", "twice", "empty"):
        with pytest.raises(PlacementError, match=f"`{name}` of the plugin `mine`"):
            choose_placement(PlacementSettings.from_user(name), 6, strategies=known)


def test_the_hint_is_given_only_where_fewer_layers_are_adapted() -> None:
    assert "2x the learning rate" in (learning_rate_hint(place("last")) or "")
    assert learning_rate_hint(place("last", fraction=1.0)) is None
