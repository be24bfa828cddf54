"""The benchmark's parts in their order, each kept in a file as soon as it is finished, so that a killed run goes on.

First what the selectors choose, then, pairs taking turns, one arm after another: all-layer LoRA, then schedules and sets of
layers in turn. A rate is chosen when the first arm of its group needs it. All pairs have gone through a seed before the next
seed begins.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from validity.arms import Arm, FixedLayers, all_layers, widened
from validity.checkpointed import clock, has_clock
from validity.pairs import JUDGED_BLOCK, RATE_BLOCK, Pair, Subject, labelled
from validity.rates import best_rate, group_of, trial_set
from validity.recipe import NewExamples, Recipe
from validity.results import ALL_LAYER, NEW_EXAMPLES, dtype_of_choices, key_text
from validity.selecting import arms_of, choices
from validity.training import Course, loss_before, train

from layercard.anatomy.layers import find_layers
from layercard.cost.predict import UnitCosts
from layercard.study.store import Store

WIDENED = ("auto balanced", "uniform")
"""Whose layers are also trained at a higher rank."""


@dataclass(frozen=True)
class Lab:
    """What all parts share: how subjects are loaded, the recipe, where results go, and the machine beside each."""

    load: Callable[[Pair], Subject]
    recipe: Recipe
    results: Path
    dtype: str
    machine: Mapping[str, Any]
    new_examples: NewExamples | None = None
    """Arms train by this where it is given, their results a folder below; choices and rates are those of `recipe`."""


class PairWork:
    """The parts of one pair."""

    def __init__(self, lab: Lab, pair: Pair) -> None:
        self.pair, self._lab = pair, lab
        self._subject: Subject | None = None
        folder = _folder(lab.results, pair)
        self._recipe = lab.new_examples or lab.recipe
        inputs = {"pair": pair.inputs(), "recipe": lab.recipe.inputs()}
        self._once = Store(folder, inputs | {"dtype": dtype_of_choices(folder) or lab.dtype})
        below = folder if lab.new_examples is None else folder / NEW_EXAMPLES
        self._runs = Store(below, inputs | {"recipe": self._recipe.inputs(), "dtype": lab.dtype})
        self.choices: dict[str, Any] = {}

    @property
    def subject(self) -> Subject:
        """The pair's model and data, loaded when a part needs them."""
        if self._subject is None:
            self._subject = self._lab.load(self.pair)
        return self._subject

    def choose(self) -> None:
        """Let every selector choose."""
        rows = self._lab.recipe.rows(1, self.pair.batch)
        self.choices = self._kept(self._once, "choices", lambda: choices(self.subject, rows), kind="choices")

    @property
    def depth(self) -> int:
        """The model's number of layers."""
        depth: int = self.choices["depth"]
        return depth

    def arms(self) -> dict[str, Arm]:
        """Return every selector's arm, and some of their sets at a higher rank."""
        found = arms_of(self.choices, find_layers(self.subject.base))
        wider = [widened(name, arm) for name in WIDENED if isinstance(arm := found.get(name), FixedLayers)]
        return found | {arm.label: arm for arm in wider}

    def run(self, arm: Arm, seed: int) -> dict[str, Any]:
        """Train an arm from a seed at its group's rate, if that was not done."""
        group = group_of(arm.share(self.depth))
        rate = self.rate(group)
        steps = self._steps(arm)
        course = Course(seed + 1, JUDGED_BLOCK, rate, steps, self._recipe.every, seed)
        return self._kept(
            self._runs,
            f"{arm.label}-seed{seed}",
            lambda: train(self.subject, arm, self._recipe, course),
            kind="run", arm=arm.key(), seed=seed, rate=rate, group=group, steps=steps,
        )  # fmt: skip

    def clock(self, arm: Arm) -> None:
        """Time an arm's steps under gradient checkpointing, if that was not done; its losses are those of its runs."""
        if has_clock(arm) and arm.key() != all_layers(self.depth).key():
            self._kept(
                self._once,
                f"{arm.label}-checkpointed",
                lambda: clock(self.subject, arm, self._lab.recipe),
                kind="clock", arm=arm.key(),
            )  # fmt: skip

    def rate(self, group: str) -> float:
        """Return the group's learning rate, chosen on rows that nothing else uses."""
        arm = trial_set(group, self.depth)

        def loss(rate: float) -> float | None:
            steps = self._lab.recipe.rate_steps
            course = Course(RATE_BLOCK, RATE_BLOCK, rate, steps, steps, 0)
            found = self._kept(
                self._once,
                f"rate-{group}-{rate:g}",
                lambda: train(self.subject, arm, self._lab.recipe, course),
                kind="rate", arm=arm.key(), rate=rate,
            )  # fmt: skip
            last: float | None = found["points"][-1]["loss"]
            return last

        return best_rate(loss)[0]

    def _steps(self, arm: Arm) -> int:
        """Return how many steps the arm trains, from predicted costs; the head's by the tokens that it runs on."""
        recipe, layers = self._recipe, self.choices["layer_parameters"]
        units = UnitCosts.with_head(self.choices["head_parameters"] * self.choices["labelled_share"], layers)
        whole = all_layers(self.depth).cost(self.depth, 0, recipe.epoch_steps, units)
        return recipe.length(whole, lambda step: arm.cost(self.depth, step, recipe.epoch_steps, units))

    def _kept(self, store: Store, name: str, make: Callable[[], dict[str, Any]], **own: Any) -> dict[str, Any]:
        if store.has(name, **own):
            return store.result(name, make, **own)
        began, cpu = time.perf_counter(), time.process_time()
        found = store.result(name, lambda: self._with_facts(make()) | {"machine": dict(self._lab.machine)}, **own)
        last = found.get("points", [{}])[-1]
        sys.stderr.write(
            f"{time.strftime('%H:%M:%S')} {self.pair.name} {name} rate {own.get('rate')}: loss {last.get('loss')} at step "
            f"{last.get('step')}; {time.process_time() - cpu:.0f} s CPU, {time.perf_counter() - began:.0f} s\n"
        )
        sys.stderr.flush()
        return found

    def _with_facts(self, made: dict[str, Any]) -> dict[str, Any]:
        """Add to a pair's choices the loss before training, and what predicting costs needs."""
        if "selectors" not in made:
            return made
        base, stack = self.subject.base, find_layers(self.subject.base)
        rows = self.subject.training_rows(self._lab.recipe.rows(1, self.pair.batch))
        tokens = sum(len(row["input_ids"]) for row in rows) / len(rows)
        return made | {
            "head_parameters": base.get_output_embeddings().weight.numel(),
            "layer_parameters": sum(p.numel() for p in stack.layers[0].parameters()),
            "labelled_share": labelled(rows) / tokens,
            "loss_before": loss_before(self.subject, JUDGED_BLOCK),
        }


def _folder(results: Path, pair: Pair) -> Path:
    folder = results / pair.name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def work_through(
    lab: Lab,
    pairs: Sequence[Pair],
    seeds: Sequence[int],
    schedules: Sequence[Arm] = (),
    *,
    only: Sequence[str] = (),
    together: int = 6,
    checkpointed: bool = False,
    until: Callable[[], bool] = lambda: False,
) -> None:
    """Make every part that is missing; `until` is asked before each whether to stop.

    `only` names the arms to train, in this order, beside all-layer LoRA; none: all of them. With `checkpointed` nothing is
    trained: their steps are timed under gradient checkpointing.
    """
    works = [PairWork(lab, pair) for pair in pairs]
    groups = [works[start : start + together] for start in range(0, len(works), together)]
    for seed in seeds:
        for group in groups:
            for part in _parts(group, seed, schedules, only, checkpointed=checkpointed):
                if until():
                    return
                part()


def _parts(
    works: Sequence[PairWork], seed: int, schedules: Sequence[Arm], only: Sequence[str], *, checkpointed: bool
) -> Iterator[Callable[[], Any]]:
    """Yield what is to be done for a group of pairs and a seed, each training once, pairs taking turns."""
    for work in works:
        yield work.choose
    queues = [_queue(work, schedules, only) for work in works]
    for turn in range(max(len(queue) for queue in queues)):
        for work, queue in zip(works, queues, strict=True):
            if turn < len(queue):
                yield partial(work.clock, queue[turn]) if checkpointed else partial(work.run, queue[turn], seed)


def _queue(work: PairWork, schedules: Sequence[Arm], only: Sequence[str]) -> list[Arm]:
    """Return all-layer LoRA, which all are compared with, then schedules and sets of layers in turn, or those of `only`."""
    if only:
        named = work.arms() | {arm.label: arm for arm in schedules}
        return _distinct([named[name] for name in (ALL_LAYER, *only)])
    whole, *selected = _distinct(list(work.arms().values()))
    pairs = zip_longest(schedules, selected)
    return [whole, *(arm for pair in pairs for arm in pair if arm is not None)]


def _distinct(arms: Sequence[Arm]) -> list[Arm]:
    """Return the arms without those that train the same as an earlier one."""
    found: dict[str, Arm] = {}
    for arm in arms:
        found.setdefault(key_text(arm.key()), arm)
    return list(found.values())
