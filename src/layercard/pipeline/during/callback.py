"""The story inside `train()`: `InsideTraining`, the callback through which a placed run takes part in it.

When training begins it checks the placement again, times baseline and placed steps and tries both out (`beginning.py`),
moves the gradient entry and writes a partial report.json; after the first real step it adds which layers ran backward; when
training ends it undoes the entry, writes the final report and shows it (`publishing.py` has where it goes). Of trainer
and model only what writes model cards is replaced. After an exception inside `train()`, which callbacks do not see, the
entry stays moved: the model computes the same, and the next `train()` or `PlacedRun.close` undoes it; report.json stays
partial.
"""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from layercard.anatomy.gradient_entry import BackwardWatch, cause_of
from layercard.cost.unit_costs import estimate_unit_costs
from layercard.errors import PlacementError, QualityError
from layercard.pipeline.during.agreeing import check_ranks_agree
from layercard.pipeline.during.beginning import begin
from layercard.pipeline.during.checkpoints import LoadedAdapters, leave_placement
from layercard.pipeline.during.entry import predicted
from layercard.pipeline.during.identity import identity_at_start, now, run_identity
from layercard.pipeline.during.other_layers import freeze_alike
from layercard.pipeline.during.publishing import Publisher
from layercard.pipeline.during.report import RunFacts, make_report
from layercard.pipeline.during.trial_choice import planned_steps
from layercard.quality.control import END
from layercard.ranks import together
from layercard.report.console import show
from layercard.report.lines import prefix_log
from layercard.report.quality import quality_loss, say_quality

if TYPE_CHECKING:
    from collections.abc import Mapping

    from layercard.pipeline.during.cache import PrefixChoice
    from layercard.pipeline.during.entry import EntryChoice
    from layercard.pipeline.during.rising import Rising
    from layercard.pipeline.placed_run import PlacedRun

log = logging.getLogger("layercard")

LAST_ENTRY = "train_loss"
"""What the trainer's log holds when the last step has been run, and no earlier."""


def attach(run: PlacedRun) -> None:
    """Join the run's trainer as a callback; raise `PlacementError` on every rank where ranks placed differently."""
    check_ranks_agree(run.placement)
    if _callback_of(run.host.trainer) is None:
        prefix_log()
        run.identity = run_identity(run.host)
        run.units = estimate_unit_costs(run.host.model, run.stack)  # before anything shards the model
        inside = InsideTraining(run)
        inside.publisher.join()
        run.host.trainer.add_callback(inside)


def detach(run: PlacedRun) -> None:
    """Leave the trainer as it was before `attach`."""
    inside = _callback_of(run.host.trainer)
    if inside is not None:
        run.close()
        inside.publisher.leave()
        run.host.trainer.remove_callback(inside)


def run_of(trainer: Any) -> PlacedRun | None:
    """Return the run of a trainer that was placed already, None of one that was not."""
    inside = _callback_of(trainer)
    return None if inside is None else inside.run


def _callback_of(trainer: Any) -> InsideTraining | None:
    return next((found for found in trainer.callback_handler.callbacks if isinstance(found, InsideTraining)), None)


class InsideTraining(TrainerCallback):
    """The part of a placed run that happens inside `train()`."""

    def __init__(self, run: PlacedRun) -> None:
        self.run = run
        self.publisher = Publisher(run.host)
        self._loaded = LoadedAdapters(run.host, run.stack)
        self._watch = BackwardWatch(run.host.model, run.stack)
        self._facts: RunFacts | None = None
        self._prefix: PrefixChoice | None = None
        self._entries: EntryChoice | None = None
        self._rising: Rising | None = None
        self._watched = False
        self._step_began = 0.0
        self._micro_batches = 0
        self._served = (0, 0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the placement, measure, put the entry in force, and write a partial report."""
        self.run.close()  # a previous train() may have ended in an exception, or be retried with smaller batches
        began, started = time.perf_counter(), now()
        run = self.run
        self._loaded.begun = True
        if not run.narrowing.in_force:
            raise PlacementError(
                "The model of this trainer was placed anew for another trainer since, or its placement was undone. Train with "
                "the trainer that was placed last, or build one anew and call `place`."
            )
        with together():
            run.verify()
            freeze_alike(run)
            if state.global_step > 0:
                self._loaded.check(run.host, state.global_step)
            check_ranks_agree(run.placement)
        with ExitStack() as undo:
            begun = begin(run, state, undo)
            begun.prefix.count_anew()  # what was timed is no training
            self._enter(undo, begun.entries, begun.prefix)
            run.in_force = undo.pop_all()
        self._prefix, self._entries, self._rising = begun.prefix, begun.entries, begun.rising
        retried = args.auto_find_batch_size and self._facts is not None and self._facts.partial
        spent_before = self._facts.overhead_seconds if retried and self._facts is not None else 0.0
        self._facts = RunFacts(
            placement=run.placement,
            elsewhere=run.elsewhere,
            measurement=begun.measurement,
            quality=begun.quality,
            device=run.host.device,
            planned=planned_steps(run.host.trainer, state),
            probe_seconds=run.probe_seconds,
            overhead_seconds=time.perf_counter() - began + spent_before,
            gradient_entry=begun.entries.to_dict(),
            prefix_cache=begun.prefix.to_dict(),
            identity=identity_at_start(run.identity, run.host.trainer) | {"started": started},
            scores=run.scores or {},
            prediction=predicted(run, begun.entries),
            schedule=None if begun.rising is None else begun.rising.to_list,
        )
        self._micro_batches = 0
        self._publish(self._facts)
        self.publisher.track(run.report)
        self._react(begun.quality)

    def _publish(self, facts: RunFacts) -> None:
        """Make the run's report of `facts` and write it, on the first rank; a full disk does not stop the training."""
        self.run.tell(make_report(facts))
        self.publisher.publish(self.run.report)

    def _react(self, quality: Mapping[str, Any]) -> None:
        """Say what the trial found, and raise `QualityError` where the run is told to stop."""
        say_quality(quality, self.run.placement, shown=self.run.host.trainer.is_world_process_zero())
        if quality["reaction"] == "stopped":
            self.run.close()
            raise QualityError(quality_loss(quality, self.run.placement))

    def _enter(self, undo: ExitStack, entries: EntryChoice, prefix: PrefixChoice) -> None:
        """Put in force what holds while the run trains; whatever else is to hold from the entry down joins here."""
        if entries.entry is not None:
            undo.enter_context(entries.entry)
        undo.enter_context(prefix.running())
        undo.enter_context(self._watch)
        self._watched = False

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note when an optimizer step begins; where the schedule says so, fewer layers learn from it on."""
        if self._rising is not None and self._rising.due(state.global_step):
            self._rise(self._rising)
        self._micro_batches, self._served = 0, self._examples_served()
        self._step_began = time.perf_counter()

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count a micro-batch that is not the last of its optimizer step."""
        self._micro_batches += 1

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note how long the step took, and after the first one which layers ran backward."""
        if self._facts is None:
            return
        seconds = time.perf_counter() - self._step_began
        (cached, served), (cached_before, served_before) = self._examples_served(), self._served
        self._facts.run.add(self._micro_batches + 1, (cached - cached_before) / max(1, served - served_before))
        if not self._watched:
            self._watched = True
            self._after_first_step(self._facts)
            return
        self._facts.observed.append(seconds)
        if self._rising is not None:
            self._rising.current.observed.append(seconds)

    def _examples_served(self) -> tuple[int, int]:
        """How many examples' prefixes came from the cache so far, and of how many."""
        return (0, 0) if self._prefix is None else self._prefix.examples_served

    def _rise(self, rising: Rising) -> None:
        """Enter the phase of the schedule that begins with this step."""
        began = time.perf_counter()
        earlier = None if self._prefix is None else self._prefix.hand_over()
        self.run.close()
        rising.advance()
        with ExitStack() as undo:
            self._prefix, self._entries = rising.enter(undo, earlier), rising.current.entries
            self._enter(undo, self._entries, self._prefix)
            self.run.in_force = undo.pop_all()
        if self._facts is not None:
            self._facts.overhead_seconds += time.perf_counter() - began

    def _after_first_step(self, facts: RunFacts) -> None:
        """Look which layers ran backward: after the first step, and after the first one of each phase of a schedule."""
        run = self.run
        self._watch.__exit__(None, None, None)
        if facts.run.steps == 1:
            facts.backward_layers = self._watch.layers
        if self._entries is not None:  # a looped model is known by its first pass
            facts.gradient_entry = self._entries.to_dict()
        if facts.gradient_entry["moved"]:
            cause = cause_of(run.host.model, run.stack, facts.gradient_entry["layer"], self._watch.layers)
            if cause is not None:
                log.warning("%s Steps take longer than they need to; the weights are not affected.", cause)
        self._publish(facts)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Finish the report with the trainer's last entry, which comes before its trackers end."""
        if logs and LAST_ENTRY in logs:
            self._finish(args, state)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the placement in the checkpoint that was saved."""
        leave_placement(self.run.placement, args, state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Undo what was in force, and show the report on the first rank."""
        self._finish(args, state)
        self._judge_best(args, state)
        self._loaded.begun = False
        self.run.close()
        if self._facts is not None and state.is_world_process_zero:
            show(self.run.report)

    def _judge_best(self, args: Any, state: Any) -> None:
        """Read the control rows with the best checkpoint, which is loaded after the last entry of the log."""
        control = self.run.control
        if self._facts is not None and control is not None and best_step(args, state) is not None:
            self.run.close()
            control.judge(END)
            self._facts.quality["forgetting"] = control.to_dict()
            self._publish(self._facts)

    def _finish(self, args: Any, state: Any) -> None:
        """Write the final report, once, and give it to the trackers."""
        if self._facts is None or self._prefix is None or not self._facts.partial:
            return
        prefix, control = self._prefix.to_dict(), self.run.control
        if control is not None and best_step(args, state) is None:
            self.run.close()  # the last step has been run; control rows are no examples for the prefix cache
            control.judge(END)
            self._facts.quality["forgetting"] = control.to_dict()
        self._facts.finish(state.log_history, prefix, best_step(args, state))
        self._publish(self._facts)
        self.publisher.track(self.run.report)


def best_step(args: Any, state: Any) -> int | None:
    """Return the step of the checkpoint that the trainer loads when training ends; None where it keeps the last step's model."""
    if not args.load_best_model_at_end or state.best_model_checkpoint is None:
        return None
    step: int | None = state.best_global_step
    return step
