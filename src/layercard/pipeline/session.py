"""`PlacedRun`: a trainer whose adapters were narrowed, from `place` to the end of `train()`.

`attach` joins the trainer as a callback. When training begins it checks the placement again, times baseline and placed
steps and tries both out (`beginning.py`), moves the gradient entry and writes a partial report.json; after the first
real step it adds which layers ran backward; when training ends it undoes the entry, writes the final report and shows
it. No method of the trainer is replaced. After an exception inside `train()`, which callbacks do not see, the entry
stays moved: the model computes the same, and the next `train()` or `close()` undoes it; report.json stays partial.
"""

from __future__ import annotations

import logging
import math
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from layercard.anatomy.gradient_entry import BackwardWatch, cause_of
from layercard.anatomy.verify import verify_placement
from layercard.cost.speedup import SpeedupReport
from layercard.errors import HostError, PlacementError, QualityError
from layercard.pipeline.beginning import begin
from layercard.pipeline.checkpoints import LoadedAdapters, leave_placement
from layercard.pipeline.ranks import check_ranks_agree
from layercard.pipeline.replacing import freeze_alike
from layercard.pipeline.reporting import RunFacts, make_report
from layercard.report.console import show
from layercard.report.files import save_report
from layercard.report.quality import quality_loss, say_quality

if TYPE_CHECKING:
    from collections.abc import Mapping

    from layercard.anatomy.layers import LayerStack
    from layercard.anatomy.narrow import Narrowing
    from layercard.hosts.protocol import Host
    from layercard.pipeline.entry_choice import EntryChoice
    from layercard.pipeline.prefix_choice import PrefixChoice
    from layercard.placement.placement import LayerPlacement
    from layercard.probing.statistics import LayerStatistics
    from layercard.scores.base import LayerScores
    from layercard.settings import PlacementSettings

log = logging.getLogger("layercard")


class PlacedRun:
    """What `place` returns: the placement, what was probed, and from the start of training on the report."""

    def __init__(
        self,
        host: Host,
        stack: LayerStack,
        placement: LayerPlacement,
        narrowing: Narrowing,
        settings: PlacementSettings,
        *,
        probe_seconds: float = 0.0,
        statistics: LayerStatistics | None = None,
        scores: Mapping[str, LayerScores] | None = None,
    ) -> None:
        self.host, self.stack, self.placement = host, stack, placement
        self.model: Any = host.model
        self.narrowing, self.settings, self.probe_seconds = narrowing, settings, probe_seconds
        self.statistics, self.scores = statistics, scores
        self._report: SpeedupReport | None = None
        self._callback: _InsideTraining | None = None

    @classmethod
    def of(cls, trainer: Any) -> PlacedRun | None:
        """Return the run of a trainer that was placed already, None of one that was not."""
        return next((c.run for c in trainer.callback_handler.callbacks if isinstance(c, _InsideTraining)), None)

    @property
    def layers(self) -> tuple[int, ...]:
        """The adapted layers, ascending, numbered from 0 at the input."""
        return self.placement.layers

    @property
    def report(self) -> SpeedupReport:
        """What placement saved and cost; partial until training has ended. Raises `HostError` before it begins."""
        if self._report is None:
            raise HostError(
                "There is no report yet: steps are measured when training begins. Call `trainer.train()` first."
            )
        return self._report

    @property
    def begun_before(self) -> SpeedupReport | None:
        """The report of an earlier `train()` of this trainer."""
        return self._report

    def attach(self) -> None:
        """Join the trainer as a callback; raise `PlacementError` on every rank where ranks placed differently."""
        check_ranks_agree(self.placement)
        if self._callback is None:
            self._callback = _InsideTraining(self)
            self.host.trainer.add_callback(self._callback)

    def detach(self) -> None:
        """Leave the trainer as it was before `attach`."""
        if self._callback is not None:
            self.close()
            self.host.trainer.remove_callback(self._callback)
            self._callback = None

    def close(self) -> None:
        """Undo what is in force for training; needed only after an exception inside `train()`."""
        if self._callback is not None:
            self._callback.leave()

    def publish(self, report: SpeedupReport) -> None:
        """Make this the run's report and write it, on the first rank; a full disk does not stop the training."""
        self._report = report
        if not self.host.trainer.is_world_process_zero():
            return
        try:
            save_report(report, self.host.output_dir)
        except OSError as error:
            log.warning("report.json could not be written to %s: %s", self.host.output_dir, error)


class _InsideTraining(TrainerCallback):
    """The part of a placed run that happens inside `train()`."""

    def __init__(self, run: PlacedRun) -> None:
        self.run = run
        self._undo = ExitStack()
        self._loaded = LoadedAdapters(run.host, run.stack)
        self._watch = BackwardWatch(run.host.model, run.stack)
        self._facts: RunFacts | None = None
        self._prefix: PrefixChoice | None = None
        self._step_began = 0.0
        self._steps_run = 0

    def leave(self) -> None:
        """Undo the gradient entry and all hooks that are in force while the run trains."""
        self._undo.close()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the placement, measure, put the entry in force, and write a partial report."""
        self.leave()  # a previous train() may have ended in an exception, or be retried with smaller batches
        began = time.perf_counter()
        run = self.run
        self._loaded.begun = True
        if not run.narrowing.in_force:
            raise PlacementError(
                "The model of this trainer was placed anew for another trainer since, or its placement was undone. Train with "
                "the trainer that was placed last, or build one anew and call `place`."
            )
        verify_placement(run.host.model, run.stack, run.layers)
        freeze_alike(run)
        if state.global_step > 0:
            self._loaded.check(run.host, state.global_step)
        check_ranks_agree(run.placement)
        with ExitStack() as undo:
            begun = begin(run, state, undo)
            self._enter(undo, begun.entries, begun.prefix)
            self._undo = undo.pop_all()
        self._prefix = begun.prefix
        self._facts = RunFacts(
            placement=run.placement,
            measurement=begun.measurement,
            quality=begun.quality,
            device=run.host.device,
            planned_steps=state.max_steps - state.global_step,
            steps_each=args.gradient_accumulation_steps,
            probe_seconds=run.probe_seconds,
            overhead_seconds=time.perf_counter() - began,
            gradient_entry=begun.entries.to_dict(),
            prefix_cache=begun.prefix.to_dict(),
            first_epoch_steps=math.ceil(state.max_steps / max(1, state.num_train_epochs)),
        )
        self._steps_run = 0
        run.publish(make_report(self._facts))
        self._react(begun.quality)

    def _react(self, quality: Mapping[str, Any]) -> None:
        """Say what the trial found, and raise `QualityError` where the run is told to stop."""
        say_quality(quality, self.run.placement, shown=self.run.host.trainer.is_world_process_zero())
        if quality["reaction"] == "stopped":
            self.leave()
            raise QualityError(quality_loss(quality, self.run.placement))

    def _enter(self, undo: ExitStack, entries: EntryChoice, prefix: PrefixChoice) -> None:
        """Put in force what holds while the run trains; whatever else is to hold from the entry down joins here."""
        if entries.entry is not None:
            undo.enter_context(entries.entry)
        undo.enter_context(prefix.running())
        undo.enter_context(self._watch)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note when an optimizer step begins."""
        self._step_began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note how long the step took, and after the first one which layers ran backward."""
        if self._facts is None:
            return
        self._steps_run += 1
        if self._steps_run == 1:
            self._after_first_step(self._facts)
        else:
            self._facts.observed.append(time.perf_counter() - self._step_began)

    def _after_first_step(self, facts: RunFacts) -> None:
        run = self.run
        self._watch.__exit__(None, None, None)
        facts.backward_layers = self._watch.layers
        if facts.gradient_entry["moved"]:
            cause = cause_of(run.host.model, run.stack, run.placement.entry, self._watch.layers)
            if cause is not None:
                log.warning("%s Steps take longer than they need to; the weights are not affected.", cause)
        run.publish(make_report(facts))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the placement in the checkpoint that was saved."""
        leave_placement(self.run.placement, args, state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Undo what was in force, write the final report, and show it on the first rank."""
        if self._facts is not None and self._prefix is not None:
            self._facts.prefix_cache = self._prefix.to_dict()
        self._loaded.begun = False
        self.leave()
        if self._facts is None:
            return
        self._facts.partial = False
        self._facts.add_evaluations(state.log_history)
        self.run.publish(make_report(self._facts))
        if state.is_world_process_zero:
            show(self.run.report)
