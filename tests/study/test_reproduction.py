from __future__ import annotations

from typing import Any

import numpy as np

from layercard.study.reproduction import TOLERANCE, reproduction

RANKING = np.arange(30, dtype=float)
GAINS = {"all_layers": [1.0, 1.0], "high": [0.8, 0.85], "last": [0.5, 0.45]}


def found(rankings: Any = None, gains: Any = None) -> dict[str, Any] | None:
    return reproduction(rankings or {0: RANKING, 1: RANKING * 2}, gains or GAINS, "all_layers", "2026-01-01")


def test_runs_that_agree_reproduce_and_say_how_closely() -> None:
    agreed = found()
    assert agreed is not None
    assert abs(agreed["largest_difference"] - 0.05) < 1e-9
    assert agreed["tolerance"] == TOLERANCE
    assert agreed["rank_correlation"] > 0.999


def test_runs_that_do_not_agree_reproduce_nothing() -> None:
    assert found(gains=GAINS | {"last": [0.5, 0.3]}) is None
    assert found(rankings={0: RANKING, 1: RANKING[::-1]}) is None
    assert found(rankings={0: RANKING}) is None
    assert found(gains={"all_layers": [-1.0, 0.5]}) is None
