"""What the project supplies passes the checks that plugins get, and each check finds the fault it is for."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from card_documents import measured
from layercard import plugins
from layercard.cards.card import LayerCard
from layercard.cards.library import save_card, shipped_dir
from layercard.hosts.plain import PlainHost
from layercard.placement.strategies import STRATEGIES
from layercard.scores.base import LayerScores
from layercard.testing import check_card_folder, check_host, check_scorer, check_strategy
from trainers import make_trainer

SCORERS = plugins.scorers(plugins.manager())


@pytest.mark.parametrize("name", sorted(SCORERS))
def test_every_scorer_passes(name: str) -> None:
    check_scorer(SCORERS[name])


class Faulty:
    """A scorer of energies; `fault` changes what it returns."""

    name = "faulty"
    needs = frozenset({"energy"})

    def __init__(self, fault: Any) -> None:
        self._fault, self.calls = fault, 0

    def score(self, statistics: Any) -> LayerScores:
        self.calls += 1
        energy = np.nanmean(statistics.energy, axis=1)
        return self._fault(self, statistics, LayerScores(self.name, energy, energy))


FAULTS = {
    "the importance nan": lambda self, s, found: replace(found, importance=np.full(s.num_layers, np.nan)),
    "shape": lambda self, s, found: replace(found, importance=found.importance[:-1]),
    "returned scores named": lambda self, s, found: replace(found, name="other"),
    "called twice": lambda self, s, found: replace(found, importance=found.importance * self.calls),
    "changed `energy`": lambda self, s, found: (s.energy.fill(0.0), found)[1],
    "one to a batch": lambda self, s, found: replace(found, importance=found.importance + (self.calls >= 4)),
}


@pytest.mark.parametrize("message", FAULTS)
def test_a_scorers_fault_is_found(message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_scorer(Faulty(FAULTS[message]))


def test_a_scorer_that_reads_what_it_does_not_declare_is_found() -> None:
    class Undeclared(Faulty):
        needs = frozenset()

    with pytest.raises(np.exceptions.AxisError) as found:
        check_scorer(Undeclared(lambda self, s, found: found))
    assert "every other statistic is None" in found.value.__notes__[0]


def test_needs_that_no_probe_knows_are_found() -> None:
    class Needy(Faulty):
        needs = frozenset({"hessian"})

    with pytest.raises(AssertionError, match="hessian"):
        check_scorer(Needy(lambda self, s, found: found))


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: strategy.name)
def test_every_strategy_passes(strategy: Any) -> None:
    check_strategy(strategy)


class Picking:
    """A strategy of one function."""

    def __init__(self, choose: Any, *, name: Any = "picking", by: Any = "depth") -> None:
        self.choose, self.name, self.by = choose, name, by


def first(request: Any) -> tuple[int, ...]:
    return tuple(request.candidates[: request.count])


CALLS = itertools.count()
STRATEGY_FAULTS = {
    "name": Picking(first, name="two words"),
    "goes by 'magic'": Picking(first, by="magic"),
    r"answered \(0,\)": Picking(lambda request: (0,)),
    r"answered \[": Picking(lambda request: list(first(request))),
    r"answered \(\)": Picking(lambda request: ()),
    "ascending": Picking(lambda request: tuple(reversed(first(request)))),
    "asked again": Picking(lambda request: (request.candidates[next(CALLS) % len(request.candidates)],)),
    "another seed": Picking(lambda request: (request.candidates[request.seed % len(request.candidates)],)),
    "below `min_entry`": Picking(
        lambda request: (request.candidates[int(request.importance.max() > 50) % len(request.candidates)],), by="score"
    ),
}


@pytest.mark.parametrize("message", STRATEGY_FAULTS)
def test_a_strategys_fault_is_found(message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_strategy(STRATEGY_FAULTS[message])


def test_the_plain_host_passes(tmp_path: Path) -> None:
    check_host(PlainHost(make_trainer(tmp_path, gradient_accumulation_steps=2)))


class Drawing(PlainHost):
    """Draws from the global random state."""

    def probe_batches(self, *args: Any) -> Any:
        torch.rand(1)
        return super().probe_batches(*args)


class Forgetful(PlainHost):
    """Counts a step and does not put the count back."""

    def training_step(self, model: Any, batch: Any) -> None:
        super().training_step(model, batch)
        self.trainer.state.global_step += 1

    def preserved(self) -> Any:
        from contextlib import nullcontext

        return nullcontext()


class Updating(PlainHost):
    """Trains the model in its step."""

    def training_step(self, model: Any, batch: Any) -> None:
        super().training_step(model, batch)
        with torch.no_grad():
            next(p for p in model.parameters() if p.requires_grad).add_(1.0)


@pytest.mark.parametrize(
    ("kind", "message"), [(Drawing, "random state"), (Forgetful, "state.global_step"), (Updating, "has changed")]
)
def test_a_hosts_fault_is_found(tmp_path: Path, kind: type[PlainHost], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_host(kind(make_trainer(tmp_path)))


def test_the_shipped_cards_pass() -> None:
    check_card_folder(shipped_dir())


def test_a_card_folders_faults_are_found(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="holds no Layer Card"):
        check_card_folder(tmp_path)
    card = LayerCard(measured(model="org/tiny", dataset="numbers"), "mine")
    save_card(card, tmp_path / "elsewhere.json")
    with pytest.raises(AssertionError, match=r"Keep it at tiny/numbers\.json"):
        check_card_folder(tmp_path)
    (tmp_path / "elsewhere.json").rename(tmp_path / "broken.json")
    (tmp_path / "broken.json").write_text(json.dumps({"schema_version": 1}))
    with pytest.raises(AssertionError, match=r"1 file\(s\)"):
        check_card_folder(tmp_path)
