from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layercard.study.probes import run_probe, stability
from studies import BRIEF, subject


def probed(values: list[float], seed: int = 0, rank: int = 8) -> dict[str, Any]:
    return {"scores": {"resnorm": {"importance": values}}, "seed": seed, "rank": rank}


def kendall(one: list[float], other: list[float]) -> float:
    """Concordant less discordant pairs over all pairs; no ties."""
    signs = [np.sign((one[i] - one[j]) * (other[i] - other[j])) for i, j in combinations(range(len(one)), 2)]
    return float(sum(signs) / len(signs))


def test_stability_is_kendalls_tau_over_seeds_and_spearmans_rho_over_ranks() -> None:
    values = [np.random.default_rng(seed).permutation(9).astype(float).tolist() for seed in range(3)]
    seeds = [probed(row, seed=i) for i, row in enumerate(values)]
    ranks = [probed(values[0], rank=8), probed(values[0][::-1], rank=1), probed([3 * v for v in values[0]], rank=4)]
    found = stability(seeds, ranks, 8)
    pairs = [kendall(a, b) for a, b in combinations(values, 2)]
    assert found["kendall_tau_over_seeds"] == pytest.approx(sum(pairs) / 3)
    assert found["rank_correlation"]["8"] == found["rank_correlation"]["4"] == pytest.approx(1.0)
    expected = np.corrcoef(values[0], values[0][::-1])[0, 1]  # of permutations, Pearson is Spearman
    assert found["rank_correlation"]["1"] == pytest.approx(expected)


def test_one_seed_has_no_stability_over_seeds() -> None:
    assert stability([probed([1.0, 2.0])], [probed([1.0, 2.0])], 8)["kendall_tau_over_seeds"] is None


def test_a_probe_names_plugins_and_what_is_undefined(tmp_path: Path) -> None:
    s = subject(tmp_path)
    found = run_probe(
        s.base, s.tokenizer, "causal", s.data, BRIEF, seed=0, rank=4, scores=("cka", "resnorm"), extensions=s.extensions
    )
    assert set(found["scores"]) | set(found["undefined"]) == {"cka", "resnorm"}
    assert found["scores"]["resnorm"]["plugin"] == "layercard"
    assert len(found["energy"]) == 6
    assert set(found["energy"][0]) == set(found["targets"])
