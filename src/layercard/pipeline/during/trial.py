"""The trial of one run: all-layer and placed LoRA trained on trial at the start of `train()`, judged by held-out loss.

Both arms start from the run's own initial adapter values, take the same first optimizer steps with the run's own
optimizer at its peak learning rate, and are judged on the same held-out rows. Where steps are timed too, the timed
steps are the arms' own (`trained`), so that the run pays for them once. Nothing of it is left in model, trainer or
random state. Every process trains its own batches, gradients are averaged, and losses gathered: all see one verdict.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from layercard.cost.timing import Variant
from layercard.cost.untouched import untouched
from layercard.hosts.optimizers import average, owned, share, trial_optimizer, trial_scaler
from layercard.pipeline.during.variants import BASELINE, PLACED
from layercard.probing.as_found import noiseless
from layercard.progress import Progress
from layercard.quality.arm import Arm, ArmSetup, advance
from layercard.quality.calibration import is_adam_like
from layercard.quality.verdict import ALL_LAYERS, BEFORE, PLACED_2X, SECOND_RATE, Verdict
from layercard.quality.verdict import PLACED as PLACED_ARM
from layercard.random_state import seed_all
from layercard.ranks import gathered

if TYPE_CHECKING:
    from layercard.hosts.protocol import HeldOut, Host
    from layercard.pipeline.during.control import ControlLoss
    from layercard.pipeline.during.rising import RisingInSmall
    from layercard.quality.budget import TrialPlan


class Trial:
    """The short trainings of one run, on `updates` (what `Host.update_batches` returned), judged on `heldout`.

    Made once, and tried with one placement after another where it is widened. With `rising` the placed arm's lower layers stop
    learning on the way.
    """

    def __init__(
        self,
        host: Host,
        plan: TrialPlan,
        heldout: HeldOut,
        updates: list[list[tuple[Mapping[str, Any], Any]]],
        control: ControlLoss | None = None,
        rising: RisingInSmall | None = None,
    ) -> None:
        self.plan, self._heldout, self._host = plan, heldout, host
        self._control, self._rising = control, rising
        self._second_rate = plan.second_rate
        self._steps_each = host.trainer.args.gradient_accumulation_steps
        self._arms: dict[str, Arm] = {}
        self._losses: dict[str, list[float]] = {}
        self._micros = [micro for update in updates for micro in update]
        self._setup = _arm_setup(host, self._micro_step)
        self.seconds = 0.0
        """Spent so far beside what was timed."""

    @property
    def micro_steps(self) -> int:
        """Micro-batch steps that each arm takes."""
        return self.plan.updates * self._steps_each

    def trained(self, variant: Variant) -> Variant:
        """Return the variant with its steps taken by an arm of its own: gradients add up and the optimizer steps."""
        arm = self._arm(variant.name, variant.entered)
        return Variant(variant.name, arm.in_force, arm.step)

    def verdict(self, all_layers: Callable[[], AbstractContextManager[object]], placed: Variant) -> Verdict:
        """Finish what the arms have begun, from nothing if timing did not, and judge them.

        Parameters: `all_layers` puts the all-layer model in force, `placed` is the placed variant. The all-layer arm is
        trained once, whatever is tried after it.
        """
        began = time.perf_counter()
        with ExitStack() as undo:
            undo.enter_context(Progress("layercard tries the placement out"))
            undo.enter_context(self._host.preserved())
            undo.enter_context(untouched(self._host.model))
            self._train(all_layers, placed)
        self.seconds += time.perf_counter() - began
        rate = float(self._host.trainer.args.learning_rate)
        adam_like = is_adam_like(self._arms[PLACED].optimizer)
        rises = () if self._rising is None else self._rising.rises
        return Verdict(dict(self._losses), self.plan.updates, self._heldout.source, rate, adam_like, rises)

    def forget_placed(self) -> None:
        """Drop what was found of the placed layers, to try others, at the run's own learning rate alone."""
        self._second_rate = False
        for name in (PLACED, PLACED_2X):
            self._arms.pop(name, None)
        if self._control is not None:
            self._control.drop_placed()
        for name in (PLACED_ARM, PLACED_2X):
            self._losses.pop(name, None)

    def _train(self, all_layers: Callable[[], AbstractContextManager[object]], placed: Variant) -> None:
        if BEFORE not in self._losses:
            with placed.entered(), torch.no_grad():
                self._losses[BEFORE] = self._judge()
        entered = {BASELINE: all_layers, PLACED: placed.entered}
        wanted = [PLACED] if ALL_LAYERS in self._losses else [BASELINE, PLACED]
        arms = {name: self._arms.get(name) or self._arm(name, entered[name]) for name in wanted}
        advance(list(arms.values()), self.micro_steps)
        for name, arm in arms.items():
            judged = ALL_LAYERS if name == BASELINE else PLACED_ARM
            self._losses[judged] = self._losses_of(arm, judged)
        self._arms.pop(BASELINE, None)
        if self._second_rate:
            twice = self._arm(PLACED_2X, placed.entered, rate=SECOND_RATE)
            advance([twice], self.micro_steps)
            self._losses[PLACED_2X] = self._losses_of(twice, PLACED_2X)

    def _arm(self, name: str, entered: Callable[[], AbstractContextManager[object]], rate: float = 1.0) -> Arm:
        if self._rising is not None and name == PLACED:
            entered = partial(self._phase_of_placed, self._rising)
        self._arms[name] = Arm(self._setup, entered, rate=rate)
        return self._arms[name]

    def _phase_of_placed(self, rising: RisingInSmall) -> AbstractContextManager[None]:
        """What is in force in the placed arm's next optimizer step."""
        arm = self._arms.get(PLACED)
        return rising.entered(0 if arm is None else arm.taken // self._steps_each)

    def _losses_of(self, arm: Arm, name: str) -> list[float]:
        with arm.judged():
            if self._control is not None and name != PLACED_2X:
                self._control.judge(name)
            return self._judge()

    def _judge(self) -> list[float]:
        """Return the held-out losses of the model as it is, those of every process, in the same order on each."""
        parts = len(gathered(None))
        batches = self._heldout.batches[: len(self._heldout.batches) // parts * parts]
        rank = self._host.trainer.args.process_index if parts > 1 else 0
        with noiseless(self._host.model):
            own = [self._host.heldout_loss(self._host.model, batch).item() for batch in batches[rank::parts]]
        return [loss for losses in gathered(own) for loss in losses]

    def _micro_step(self, number: int) -> None:
        seed_all(self._host.trainer.args.seed + number)  # an arm's noise does not depend on who else trains
        self._host.training_step(self._host.model, self._micros[number % len(self._micros)])


def _arm_setup(host: Host, micro_step: Callable[[int], None]) -> ArmSetup:
    trainer = host.trainer
    return ArmSetup(
        model=host.model,
        micro_step=micro_step,
        steps_each=trainer.args.gradient_accumulation_steps,
        optimizer=partial(trial_optimizer, trainer),
        max_grad_norm=trainer.args.max_grad_norm or 0.0,
        scaler=partial(trial_scaler, trainer),
        owned=partial(owned, trainer),
        shared=share,
        averaged=average,
    )
