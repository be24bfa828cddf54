"""How long a trial a run can pay for: `plan_trial`, in numbers alone.

The unit is one all-layer micro-batch step, forward and backward. A plan spends about a third of its units on held-out
losses and the rest on training; what does not fit shrinks in this order: retries, the second learning rate, examples,
steps. A plan depends on the run's length and on predicted costs, never on a clock, so that the same run makes the same
plan and every process makes the same one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FEWEST_UPDATES, MOST_UPDATES = 3, 64
FEWEST_EXAMPLES, MOST_EXAMPLES = 8, 128
UPDATES_FOR_SECOND_RATE = 4
"""The second learning rate is tried where so many steps can be taken with it."""
SHARE_FOR_LOSSES = 0.3


@dataclass(frozen=True)
class TrialCosts:
    """What the parts of a trial cost, in all-layer micro-batch steps."""

    steps_each: int
    """Micro-batches in an optimizer step."""
    placed: float
    """A placed micro-batch step."""
    forward: float
    """The forward pass of a micro-batch."""
    batch_size: int
    """Rows in a micro-batch, of all processes together."""


@dataclass(frozen=True)
class TrialPlan:
    """How many optimizer steps each arm takes, and how many held-out examples judge it."""

    updates: int
    examples: int
    second_rate: bool
    """Whether the placed arm is tried at twice the learning rate too."""
    retries: int = 0
    """How many widened placements can be tried after the first."""
    units: float = 0.0
    """What it all costs, in all-layer micro-batch steps."""


def plan_trial(
    units: float, costs: TrialCosts, *, retries: int = 0, second_rate_wanted: bool = True
) -> TrialPlan | None:
    """Return the largest plan that `units` pay for, or None where they cannot pay for the smallest.

    `second_rate_wanted`: the second learning rate is tried where it can be paid for.
    """
    wanted = ((True, retries),) if second_rate_wanted else ()
    for second_rate, tries in (*wanted, (False, retries), *((False, fewer) for fewer in range(retries)[::-1])):
        plan = _plan(units, costs, second_rate, tries)
        if plan.updates >= (UPDATES_FOR_SECOND_RATE if second_rate else FEWEST_UPDATES) and plan.units <= units + 1e-9:
            return plan
    return None


def least_units(costs: TrialCosts) -> float:
    """Return the units that pay for the smallest plan."""
    return _cost(costs, FEWEST_UPDATES, FEWEST_EXAMPLES, arms=1)


def _plan(units: float, costs: TrialCosts, second_rate: bool, retries: int) -> TrialPlan:
    arms = 1 + second_rate + retries
    each = costs.forward * (2 + arms) / costs.batch_size
    examples = min(MOST_EXAMPLES, max(FEWEST_EXAMPLES, math.floor(SHARE_FOR_LOSSES * units / each)))
    left = units - examples * each
    updates = min(MOST_UPDATES, max(0, math.floor(left / (costs.steps_each * (1 + arms * costs.placed)) + 1e-9)))
    return TrialPlan(updates, examples, second_rate, retries, _cost(costs, updates, examples, arms=arms))


def _cost(costs: TrialCosts, updates: int, examples: int, *, arms: int) -> float:
    """Units of the all-layer arm and `arms` placed ones, with the losses of each and those before training."""
    training = updates * costs.steps_each * (1 + arms * costs.placed)
    return training + examples / costs.batch_size * costs.forward * (2 + arms)
