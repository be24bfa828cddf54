"""How many micro-batches a run takes, held against transformers' own arithmetic in `tests/pipeline/test_counted.py`."""

from hypothesis import given
from hypothesis import strategies as st

from layercard.cost.planned import PlannedSteps, StepsRun


def by_hand(steps: int, each: int, epoch: int) -> list[int]:
    """Micro-batches of each optimizer step, epoch by epoch."""
    sizes: list[int] = []
    while len(sizes) < steps:
        left = epoch
        while left > 0:
            sizes.append(min(each, left))
            left -= each
    return sizes[:steps]


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 9), st.integers(1, 20))
def test_an_epochs_last_step_has_what_is_left(begins: int, more: int, each: int, epoch: int) -> None:
    planned = PlannedSteps(begins, begins + more, each, epoch)
    sizes = by_hand(begins + more, each, epoch)[begins:]
    assert (planned.steps, planned.micro_batches) == (more, sum(sizes))
    assert planned.first_seen == min(epoch, sum(sizes))


def test_of_a_stream_every_micro_batch_is_full_and_new() -> None:
    planned = PlannedSteps(2, 10, 4)
    assert planned.micro_batches == planned.first_seen == 32


def test_what_is_run_is_counted_by_its_micro_batches() -> None:
    run = StepsRun()
    run.add(4, 0.0)
    run.add(1, 0.5)
    assert (run.steps, run.micro_batches, run.cached) == (2, 5, 0.5)
