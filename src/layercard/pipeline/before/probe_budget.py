"""How many examples a run can pay its probe with, and whether it can earn its preparation back.

A probed example costs about as much as one that all-layer LoRA trains on (`benchmarks/probe`), so both are counted in
examples of the planned run, never by a clock: every rank and every repetition reads the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from layercard.cost.planned import PlannedSteps
from layercard.hosts.rows import documents_in, is_indexed

if TYPE_CHECKING:
    from layercard.hosts.protocol import Host
    from layercard.settings import PlacementSettings

FEWEST_FOR_CARDS = 8
"""Examples under which a ranking of layers is not worth comparing with a Layer Card's."""
FEWEST_FOR_A_LOOK = 2
ROWS_COUNTED = 16


@dataclass(frozen=True)
class ProbeBudget:
    """What `probe_budget` allows in a run of so many planned examples; `planned` None where that is not known."""

    planned: int | None
    share: float
    wanted: int
    """`probe_examples`."""

    @property
    def affordable(self) -> int:
        """How many examples may be probed, at most `wanted`."""
        return self.wanted if self.planned is None else min(self.wanted, int(self.planned * self.share))

    @property
    def allows_cards(self) -> bool:
        """Whether the run can pay for a ranking that a Layer Card may be compared with."""
        return self.affordable >= min(FEWEST_FOR_CARDS, self.wanted)

    def look(self, most: int) -> int:
        """How many examples are looked at where no score decides; 0 where the run cannot pay for it."""
        return min(self.affordable, most) if self.affordable >= FEWEST_FOR_A_LOOK else 0

    def fewer(self, taken: int) -> str | None:
        """Return in a sentence why fewer examples than `probe_examples` are probed, or none; None where all of them are."""
        if taken >= self.wanted:
            return None
        if taken == 0:
            return f"No example was looked at: {self._why}."
        return f"The probe reads {taken} of {self.wanted} examples: {self._why}. More examples rank layers more surely."

    def asked_for_more(self) -> str | None:
        """Return in a sentence that a score which was asked for takes more of the run than the budget; None where not."""
        if self.affordable >= self.wanted or not self.planned:
            return None
        return (
            f"The score was asked for, so {self.wanted} examples are probed: {self.wanted / self.planned:.0%} of those that this "
            "run trains on. `probe_examples` lowers that."
        )

    def no_cards(self) -> str:
        """Return why Layer Cards were not asked."""
        needed = math.ceil(min(FEWEST_FOR_CARDS, self.wanted) / self.share) if self.share else None
        enough = f"; a run over {needed} can" if needed else ""
        return f"Layer Cards may be of this model and were not asked: {self._why}, too few to rank layers by{enough}"

    @property
    def _why(self) -> str:
        return (
            f"`probe_budget` is {self.share:.1%} of the {self.planned} examples that this run trains on, which is "
            f"{self.affordable}"
        )


def probe_budget(host: Host, settings: PlacementSettings) -> ProbeBudget:
    """Return what a run's probe may take."""
    return ProbeBudget(planned_examples(host.trainer), settings.probe_budget, settings.probe_examples)


def planned_examples(trainer: Any) -> int | None:
    """Return how many documents the run will train on, over all epochs and processes; None where it is not known."""
    from transformers.trainer_utils import has_length

    args, data = trainer.args, trainer.train_dataset
    rows_each = args.per_device_train_batch_size * max(1, args.n_gpu) * args.world_size
    whole = len(data) if has_length(data) else None
    if args.max_steps > 0:
        epoch = None if whole is None else math.ceil(whole / rows_each)
        rows = PlannedSteps(0, args.max_steps, args.gradient_accumulation_steps, epoch).micro_batches * rows_each
    elif whole is not None:
        rows = math.ceil(args.num_train_epochs * whole)
    else:
        return None
    return round(rows * _documents_a_row(data)) if is_indexed(data) and whole else rows


def planned_updates(trainer: Any) -> int | None:
    """Return how many optimizer steps the run will take; None where its length is not known."""
    from transformers.trainer_utils import has_length

    args, data = trainer.args, trainer.train_dataset
    if args.max_steps > 0:
        return int(args.max_steps)
    if not has_length(data):
        return None
    rows = len(data) / (args.per_device_train_batch_size * max(1, args.n_gpu) * args.world_size)
    batches = math.floor(rows) if args.dataloader_drop_last else math.ceil(rows)
    return math.ceil(args.num_train_epochs * max(1, math.ceil(batches / args.gradient_accumulation_steps)))


def _documents_a_row(data: Any) -> float:
    """The mean over the first rows; several where they are packed."""
    counted = [documents_in(data[index]) for index in range(min(ROWS_COUNTED, len(data)))]
    return sum(counted) / len(counted)


def not_earned_back(ratio: float, steps: int, *, probed_steps: float, shares: float) -> str | None:
    """Return in a sentence that a run is predicted to save less than its preparation takes, None where it saves more.

    Parameters: `ratio` of the placed step time over the all-layer one, as predicted; `steps`, planned; `probed_steps`, what
    the probe took, in all-layer steps; `shares` of the planned steps that timing and trial may take together.
    """
    saved, spent = (1.0 - ratio) * steps, probed_steps + shares * steps
    if saved >= spent:
        return None
    return (
        f"This run is too short to earn its preparation back: the placed layers are predicted to save the time of "
        f"{max(0.0, saved):.0f} of {steps} all-layer steps, and probe, timing and trial take that of up to {spent:.0f}."
    )
