"""One run: a lean loop over layercard's own narrowing, gradient entry and prefix cache; what it reached, and when.

A loop of its own instead of a host's trainer, since a trainer's bookkeeping would be a tenth of such short steps and its
callbacks see neither the time of evaluations nor what a schedule does. The head runs on predicted positions alone, as
TRL's default loss has it. Batches hold whole examples; every epoch goes through the same rows in another order.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from validity.arms import RANK, Arm, WiderLayers
from validity.averaging import Average
from validity.clock import TrainingClock
from validity.live import Live
from validity.pairs import Subject
from validity.recipe import Recipe

from layercard import plugins
from layercard.data import IGNORED, Tokens, collate, pad_id
from layercard.random_state import random_state
from layercard.study.adapting import adapted
from layercard.study.settings import StudySettings

EVALUATED_AT_ONCE = 12
CLOCK_ROWS = 2


@dataclass(frozen=True)
class Course:
    """What one run is beside its arm: examples in blocks, rate, number of steps, and at which steps it is judged."""

    training_block: int
    heldout_block: int
    rate: float
    steps: int
    every: int
    seed: int


def train(subject: Subject, arm: Arm, recipe: Recipe, course: Course) -> dict[str, Any]:
    """Return under `points` the held-out loss at a series of steps, with the time that training took until then.

    `cpu_seconds` is process CPU time, `units` the same in reference passes (`clock.py`). A run whose loss is no longer
    finite ends there with the loss None.
    """
    rows = subject.training_rows(recipe.rows(course.training_block, subject.pair.batch))
    heldout = subject.heldout_rows(course.heldout_block)
    with random_state(course.seed):
        rank = arm.rank if isinstance(arm, WiderLayers) else RANK
        settings = StudySettings(rank=rank, alpha=2 * rank, probe_ranks=(rank,))
        model, stack = adapted(subject.base, "causal", settings, course.seed, plugins.extensions())
        model.train()
        with Live(model, stack, recipe.cache_bytes) as live:
            return _Run(live, subject, arm, recipe, course, rows, heldout).through()


class _Run:
    def __init__(
        self,
        live: Live,
        subject: Subject,
        arm: Arm,
        recipe: Recipe,
        course: Course,
        rows: Sequence[Tokens],
        heldout: Sequence[Tokens],
    ) -> None:
        self._live, self._arm, self._recipe, self._course = live, arm, recipe, course
        self._pad, self._batch = pad_id(subject.tokenizer), subject.pair.batch
        self._rows, self._heldout = rows, heldout
        fixed = collate(heldout[:CLOCK_ROWS], self._pad)
        self._clock = TrainingClock(lambda: self._reference(fixed))
        self._points: list[dict[str, Any]] = []

    def through(self) -> dict[str, Any]:
        self._clock.go()
        self._arm.begin(self._live)
        trained = self._live.trained
        optimizer = torch.optim.AdamW(trained, lr=self._course.rate, weight_decay=0.0, fused=True)
        average = Average(trained, self._recipe.averaging)
        for step in range(self._course.steps):
            self._arm.before_step(self._live, step)
            average.drop([p for p in trained if not p.requires_grad])
            self._step(step, optimizer)
            average.update()
            if (step + 1) % self._course.every == 0:
                self._clock.stop()
                if not self._judge(step + 1, average):
                    break
                self._clock.go()
        return self._result(trained)

    def _step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self._recipe.rate_at(step, self._course.rate)
        nll, _ = losses(self._live, self._batch_of(step))
        nll.mean().backward()
        torch.nn.utils.clip_grad_norm_(self._live.trained, self._recipe.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def _batch_of(self, step: int) -> dict[str, Tensor]:
        epoch, index = divmod(step, len(self._rows) // self._batch)
        order = list(range(len(self._rows)))
        random.Random(f"{self._course.seed} {epoch}").shuffle(order)
        return collate([self._rows[i] for i in order[index * self._batch :][: self._batch]], self._pad)

    def _judge(self, step: int, average: Average) -> bool:
        """Note the held-out loss, and return whether it is finite."""
        with average.in_force():
            found = heldout_losses(self._live, self._heldout, self._pad)
        loss = math.fsum(found) / len(found)
        finite = math.isfinite(loss)
        point: dict[str, Any] = {"step": step, "loss": loss if finite else None}
        point |= {"cpu_seconds": round(self._clock.seconds, 3), "units": round(self._clock.units, 3)}
        if finite and step in (self._recipe.steps, self._course.steps):
            point["losses"] = [round(x, 4) for x in found]
        self._points.append(point)
        return finite

    def _reference(self, batch: Mapping[str, Tensor]) -> None:
        with torch.no_grad(), self._live.aside(), self._live.model.disable_adapter():
            self._live.backbone(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)

    def _result(self, trained: Sequence[Any]) -> dict[str, Any]:
        cache = self._live.cache
        return {
            "points": self._points,
            "reference_seconds": [round(x, 4) for x in self._clock.references],
            "trainable_parameters": sum(p.numel() for p in trained),
            "prefix_cache": None if cache is None else {"hits": cache.use.hits, "misses": cache.use.misses},
            "entry": self._live.entry,
        }


def loss_before(subject: Subject, block: int) -> float:
    """Return the held-out loss of the model as it is: adapters add nothing at first."""
    with random_state(0):
        model, stack = adapted(subject.base, "causal", StudySettings(), 0, plugins.extensions())
        found = heldout_losses(Live(model, stack, 0), subject.heldout_rows(block), pad_id(subject.tokenizer))
    return math.fsum(found) / len(found)


def losses(live: Live, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return (predicted,) the negative log-likelihood of every labelled token, and the row that each lies in."""
    hidden = live.backbone(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    ).last_hidden_state
    targets = batch["labels"][:, 1:]
    rows, positions = (targets != IGNORED).nonzero(as_tuple=True)
    logits = live.model.get_output_embeddings()(hidden[rows, positions]).float()
    return F.cross_entropy(logits, targets[rows, positions], reduction="none"), rows


@torch.no_grad()
def heldout_losses(live: Live, heldout: Sequence[Tokens], pad: int) -> list[float]:
    """Return each example's mean negative log-likelihood over its labelled tokens, in nats, in their order."""
    by_length = sorted(range(len(heldout)), key=lambda i: len(heldout[i]["input_ids"]))
    found = [0.0] * len(heldout)
    with live.aside():
        for start in range(0, len(by_length), EVALUATED_AT_ONCE):
            chosen = by_length[start : start + EVALUATED_AT_ONCE]
            nll, rows = losses(live, collate([heldout[i] for i in chosen], pad))
            for row, index in enumerate(chosen):
                found[index] = float(nll[rows == row].mean())
    return found
