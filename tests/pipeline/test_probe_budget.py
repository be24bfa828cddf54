"""The probe's cost follows the run, counted in examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layercard.pipeline.before.probe_budget import ProbeBudget, not_earned_back, planned_examples
from trainers import make_trainer


@given(st.integers(0, 10**6), st.floats(0, 0.5), st.integers(1, 64))
def test_never_more_than_the_share_or_than_asked_for(planned: int, share: float, wanted: int) -> None:
    budget = ProbeBudget(planned, share, wanted)
    assert budget.affordable <= min(wanted, planned * share)
    assert budget.look(8) <= min(8, budget.affordable)


def test_a_run_of_unknown_length_probes_what_was_asked_for() -> None:
    assert ProbeBudget(None, 0.02, 32).affordable == 32


def test_twenty_steps_on_64_rows_cannot_pay_for_cards() -> None:
    budget = ProbeBudget(planned=20 * 4, share=0.02, wanted=32)
    assert not budget.allows_cards
    assert budget.look(8) == 0
    assert (
        budget.fewer(0)
        == "No example was looked at: `probe_budget` is 2.0% of the 80 examples that this run trains on, which is 1."
    )
    assert "32 examples are probed: 40% of those" in str(budget.asked_for_more())
    assert "is 2.0% of the 80 examples" in budget.no_cards()
    assert "a run over 400 can" in budget.no_cards()


def test_a_long_run_probes_everything_in_silence() -> None:
    budget = ProbeBudget(planned=16_000, share=0.02, wanted=32)
    assert budget.allows_cards
    assert budget.fewer(budget.affordable) is None
    assert budget.asked_for_more() is None


@pytest.mark.parametrize(
    ("changes", "examples"),
    [
        ({"max_steps": 10}, 20),
        ({"max_steps": 10, "gradient_accumulation_steps": 4}, 80),
        ({"max_steps": -1, "num_train_epochs": 2.5}, 100),
    ],
)
def test_planned_examples_are_those_of_the_trainer(tmp_path: Path, changes: dict[str, Any], examples: int) -> None:
    """40 rows, two to a batch: counted against what a real run consumes."""
    trainer = make_trainer(tmp_path, **changes)
    assert planned_examples(trainer) == examples
    trainer.train()
    steps = trainer.state.global_step * changes.get("gradient_accumulation_steps", 1)
    assert steps * 2 == examples


def test_packed_rows_count_their_documents(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=10)
    trainer.train_dataset.rows = [{"input_ids": [5] * 6, "position_ids": [0, 1, 2, 0, 1, 0], "labels": [5] * 6}] * 8
    assert planned_examples(trainer) == 60


def test_a_run_that_saves_less_than_it_spends_is_told() -> None:
    assert not_earned_back(0.7, 1000, probed_steps=4, shares=0.05) is None
    told = not_earned_back(0.97, 100, probed_steps=4, shares=0.05)
    assert told is not None
    assert "save the time of 3 of 100" in told
    assert "up to 9" in told
