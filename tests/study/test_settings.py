from __future__ import annotations

from typing import Any

import pytest

from layercard.errors import SettingsError
from layercard.study.settings import StudySettings


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": 0},
        {"batch_size": True},
        {"learning_rate": 0.0},
        {"seeds": ()},
        {"seeds": (1, 1)},
        {"seeds": (-1,)},
        {"probe_ranks": (0, 8)},
        {"rank": 2},
        {"probe_examples": 3},
        {"max_length": 1},
    ],
)
def test_a_bad_value_is_named(bad: dict[str, Any]) -> None:
    name = "probe_ranks" if bad == {"rank": 2} else next(iter(bad))
    with pytest.raises(SettingsError, match=f"`{name}`"):
        StudySettings(**bad).validated()


@pytest.mark.parametrize(
    ("seeds", "least", "probed"), [((0, 1), 3, (0, 1, 2)), ((5,), 3, (5, 0, 1)), ((1, 3, 0), 2, (1, 3, 0))]
)
def test_every_seed_that_trains_is_probed_and_others_up_to_the_number_asked_for(
    seeds: tuple[int, ...], least: int, probed: tuple[int, ...]
) -> None:
    assert StudySettings(seeds=seeds, probe_seeds=least).probed_seeds == probed


def test_a_smoke_study_is_marked_and_short() -> None:
    smoke = StudySettings(generate=50).smoke().validated()
    assert smoke.quick
    assert smoke.steps * smoke.batch_size * len(smoke.seeds) <= 8
    assert smoke.generate == 2
