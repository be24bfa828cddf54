"""`Verdict`: what a trial found, and what report.json says of it under `quality`.

The keys are always the same; what is not known is null, and `reason` says why.

    kind                  `predicted` where a trial ran: its steps are few, and it is the end of the run that matters;
                          `tried` where it was one of a schedule, which nothing carries to the end: `share_kept` is null;
                          `unknown` where none ran or there was no gain to compare with
    share_kept            share of all-layer LoRA's reduction of the held-out loss that the placed layers are expected to
                          have kept at the end of the run: `share_in_trial`, calibrated for its few steps
    interval              of it: that of `share_in_trial`, calibrated and widened by how far calibrations differ
    share_in_trial        the share measured after `steps`
    interval_in_trial     of it, over resamples of the held-out examples, with about 95% coverage
    threshold             of `share_kept`, under which `on_quality_loss` acts
    heldout_loss          mean over examples, in nats, of the base model (`before`) and of each arm after its steps:
                          `all_layers`, `placed`, `placed_2x` (at twice the learning rate, where it was tried)
    judged_by             what that loss is: the trainer's own, or another where the trainer's cannot be read
    examples, heldout_from  how many rows judged, and from where: `eval_dataset` or `training set`
    steps, planned_steps  optimizer steps of each arm, and of the run
    rises                 the arm's optimizer steps, counted from 0, from which fewer layers learned; null without a schedule
    learning_rate         of the arms: the run's peak, without warm-up
    learning_rate_hint    which of 1x and 2x the placed layers learned faster at; nothing is changed
    reaction              `none`, `warned`, `stopped`, `all_layers` or `widened`
    tried                 every placement tried: its layers and the share that it is expected to keep
    evidence              what was known before training, as in placement.json
    meaning               what `share_kept` is, in a sentence
    seconds               what the trial took beside the timing
    reason                why something is null
    final_heldout_loss    the trainer's own last evaluation in the run
    forgetting            loss on the control rows and its rise, before, in the trial and at the end; `control.py`
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from layercard.quality.calibration import at_end, interval_at_end
from layercard.quality.share import Share, mean_finite, share_kept

BEFORE, ALL_LAYERS, PLACED, PLACED_2X = "before", "all_layers", "placed", "placed_2x"
SECOND_RATE = 2.0
UNCALIBRATED = "No short trial of a schedule was ever held against the end of its run."
KEYS = (
    "kind", "share_kept", "interval", "share_in_trial", "interval_in_trial", "threshold", "heldout_loss", "judged_by", "examples",
    "heldout_from", "steps", "planned_steps", "rises", "learning_rate", "learning_rate_hint", "reaction", "tried", "evidence",
    "meaning", "seconds", "reason", "final_heldout_loss",
    "forgetting",
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """The held-out losses of a trial, example by example, and what they say."""

    losses: Mapping[str, Sequence[float]]
    """By arm: `before`, `all_layers`, `placed`, and `placed_2x` where it was tried."""
    updates: int
    source: str
    learning_rate: float
    adam_like: bool = True
    """Whether the optimizer is; the calibration knows no others."""
    rises: tuple[int, ...] = ()
    """The optimizer steps from which fewer layers learned, under a schedule; the calibration knows none."""

    @property
    def in_trial(self) -> Share:
        """The share of the gain that the placed arm kept."""
        return share_kept(self.losses[BEFORE], self.losses[ALL_LAYERS], self.losses[PLACED])

    @property
    def share(self) -> Share:
        """The share that is expected at the end of the run; nothing foretells that of a schedule."""
        found = self.in_trial
        if self.rises and found.value is not None:
            return Share(None, reason=UNCALIBRATED)
        if found.value is None or found.low is None or found.high is None:
            return found
        rate = self.learning_rate if self.adam_like else None
        value = at_end(found.value, self.updates, rate)
        low, high = interval_at_end(found.low, found.high, self.updates, rate)
        return replace(found, value=value, low=low, high=high)

    @property
    def better_rate(self) -> float | None:
        """1.0 or 2.0, whichever multiple of the learning rate the placed layers learned faster at; None if untried."""
        if PLACED_2X not in self.losses:
            return None
        if self._diverged(PLACED) or self._diverged(PLACED_2X):
            return 1.0 if self._diverged(PLACED_2X) else SECOND_RATE
        once, twice = (mean_finite(self.losses[name]) or 0.0 for name in (PLACED, PLACED_2X))
        return SECOND_RATE if twice < once else 1.0

    def _diverged(self, name: str) -> bool:
        """Whether an example has no finite loss that had one before training."""
        pairs = zip(self.losses[BEFORE], self.losses[name], strict=True)
        return any(math.isfinite(before) and not math.isfinite(after) for before, after in pairs)

    def to_dict(self) -> dict[str, Any]:
        """Return what the losses say, without what only the run knows."""
        share, in_trial = self.share, self.in_trial
        return {
            "kind": self._kind(),
            "share_kept": share.value,
            "interval": None if share.low is None else [share.low, share.high],
            "share_in_trial": in_trial.value,
            "interval_in_trial": None if in_trial.low is None else [in_trial.low, in_trial.high],
            "heldout_loss": {name: mean_finite(losses) for name, losses in self.losses.items()},
            "examples": sum(map(math.isfinite, self.losses[BEFORE])),
            "heldout_from": self.source,
            "steps": self.updates,
            "rises": list(self.rises) or None,
            "learning_rate": self.learning_rate,
            "learning_rate_hint": self._hint(),
            "reason": share.reason,
        }

    def _kind(self) -> str:
        if self.in_trial.value is None:
            return "unknown"
        return "tried" if self.rises else "predicted"

    def _hint(self) -> dict[str, Any] | None:
        better = self.better_rate
        if better is None:
            return None
        twice = share_kept(self.losses[BEFORE], self.losses[ALL_LAYERS], self.losses[PLACED_2X]).value
        return {"better": better, "learning_rate": better * self.learning_rate, "share_in_trial": twice}


def unknown(reason: str) -> dict[str, Any]:
    """Return the quality of a run in which no trial ran."""
    return {"kind": "unknown", "reason": reason}


def completed(quality: Mapping[str, Any]) -> dict[str, Any]:
    """Return `quality` with every key, in the documented order; null where it says nothing."""
    return {name: quality.get(name) for name in KEYS}


def meaning(updates: int, planned: int, *, rises: bool = False) -> str:
    """Return what the share is, in a sentence; `rises`: that in the trial of a schedule."""
    if rises:
        return (
            "The share of all-layer LoRA's reduction of the held-out loss that the schedule had reached at the end of a trial of "
            f"{updates} steps at the peak learning rate, its rises at the same shares as in the run's {planned}. Nothing acts "
            "on it, since no short trial of a schedule was ever held against the end of its run."
        )
    return (
        "The share of all-layer LoRA's reduction of the held-out loss that the placed layers are expected to have reached "
        f"at the end of the run's {planned} steps: predicted from a trial of {updates} at the peak learning rate, "
        "calibrated on 200-step AdamW runs of a 135M model."
    )
