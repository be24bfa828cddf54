"""`PlacedRun`: a trainer whose adapters were narrowed, from `place` to the end of `train()`.

`attach` joins the trainer as a callback. When training begins it checks the placement again, times baseline and placed
steps and tries both out (`beginning.py`), moves the gradient entry and writes a partial report.json; after the first
real step it adds which layers ran backward; when training ends it undoes the entry, writes the final report and shows
it (`publishing.py` has where it goes). Of trainer and model only what writes model cards is replaced. After an exception
inside `train()`, which callbacks do not see, the entry stays moved: the model computes the same, and the next `train()`
or `close()` undoes it; report.json stays partial.
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
from layercard.cost.predict import UnitCosts
from layercard.cost.speedup import SpeedupReport
from layercard.cost.unit_costs import estimate_unit_costs
from layercard.errors import HostError, PlacementError, QualityError
from layercard.pipeline.beginning import begin
from layercard.pipeline.checkpoints import LoadedAdapters, leave_placement
from layercard.pipeline.elsewhere import towers_to_shed
from layercard.pipeline.forecasting import forecast
from layercard.pipeline.identity import now, run_identity
from layercard.pipeline.publishing import Publisher
from layercard.pipeline.ranks import check_ranks_agree
from layercard.pipeline.replacing import freeze_alike
from layercard.pipeline.reporting import RunFacts, make_report
from layercard.report.console import show
from layercard.report.lines import prefix_log
from layercard.report.quality import quality_loss, say_quality

if TYPE_CHECKING:
    from collections.abc import Mapping

    from layercard.anatomy.layers import LayerStack
    from layercard.anatomy.narrow import Narrowing
    from layercard.hosts.protocol import Host
    from layercard.pipeline.elsewhere import Trainables
    from layercard.pipeline.entry_choice import EntryChoice
    from layercard.pipeline.prefix_choice import PrefixChoice
    from layercard.placement.placement import LayerPlacement
    from layercard.probing.statistics import LayerStatistics
    from layercard.scores.base import LayerScores
    from layercard.settings import PlacementSettings

log = logging.getLogger("layercard")

LAST_ENTRY = "train_loss"
"""What the trainer's log holds when the last step has been run, and no earlier."""


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
        trainables: Trainables | None = None,
    ) -> None:
        self.host, self.stack, self.placement = host, stack, placement
        self.model: Any = host.model
        self.narrowing, self.settings, self.probe_seconds = narrowing, settings, probe_seconds
        self.statistics, self.scores = statistics, scores
        self.identity: dict[str, Any] = {}
        self.units = UnitCosts()
        self.publisher = Publisher(host)
        self._trainables = trainables
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
    def elsewhere(self) -> list[dict[str, Any]]:
        """What trains, or was taken out, outside the placed stack; `Elsewhere` of `elsewhere.py` has the keys."""
        return [] if self._trainables is None else [part.to_dict() for part in self._trainables.elsewhere()]

    @property
    def built_on_fewer(self) -> bool:
        """Whether the adapter was built on chosen layers alone, so that all-layer LoRA is nowhere to be compared with."""
        had = {self.stack.layer_of(name) for name in self.narrowing.all_names}
        return not had.issuperset(self.placement.every_layer)

    def verify(self) -> None:
        """Raise `PlacementError` unless exactly what was placed trains."""
        towers = towers_to_shed(self.host.model, self.stack, self.placement)
        verify_placement(self.host.model, self.stack, self.layers, shed_towers=towers)

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
            prefix_log()
            self.identity = run_identity(self.host)
            self.units = estimate_unit_costs(self.host.model, self.stack)  # before anything shards the model
            self.publisher.join()
            self._callback = _InsideTraining(self)
            self.host.trainer.add_callback(self._callback)

    def detach(self) -> None:
        """Leave the trainer as it was before `attach`."""
        if self._callback is not None:
            self.close()
            self.publisher.leave()
            self.host.trainer.remove_callback(self._callback)
            self._callback = None

    def close(self) -> None:
        """Undo what is in force for training; needed only after an exception inside `train()`."""
        if self._callback is not None:
            self._callback.leave()

    def publish(self, report: SpeedupReport) -> None:
        """Make this the run's report and write it, on the first rank; a full disk does not stop the training."""
        self._report = report
        self.publisher.publish(report)


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
        began, started = time.perf_counter(), now()
        run = self.run
        self._loaded.begun = True
        if not run.narrowing.in_force:
            raise PlacementError(
                "The model of this trainer was placed anew for another trainer since, or its placement was undone. Train with "
                "the trainer that was placed last, or build one anew and call `place`."
            )
        run.verify()
        freeze_alike(run)
        if state.global_step > 0:
            self._loaded.check(run.host, state.global_step)
        check_ranks_agree(run.placement)
        with ExitStack() as undo:
            begun = begin(run, state, undo)
            self._enter(undo, begun.entries, begun.prefix)
            self._undo = undo.pop_all()
        self._prefix, self._entries = begun.prefix, begun.entries
        self._facts = RunFacts(
            placement=run.placement,
            elsewhere=run.elsewhere,
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
            identity=run.identity | {"started": started},
            scores=run.scores or {},
            prediction=forecast(run, begun.entries),
        )
        self._steps_run = 0
        run.publish(make_report(self._facts))
        run.publisher.track(run.report)
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
        facts.gradient_entry = self._entries.to_dict()  # a looped model is known by its first pass
        if facts.gradient_entry["moved"]:
            cause = cause_of(run.host.model, run.stack, run.placement.entry, self._watch.layers)
            if cause is not None:
                log.warning("%s Steps take longer than they need to; the weights are not affected.", cause)
        run.publish(make_report(facts))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Finish the report with the trainer's last entry, which comes before its trackers end."""
        if logs and LAST_ENTRY in logs:
            self._finish(state)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the placement in the checkpoint that was saved."""
        leave_placement(self.run.placement, args, state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Undo what was in force, and show the report on the first rank."""
        self._finish(state)
        self._loaded.begun = False
        self.leave()
        if self._facts is not None and state.is_world_process_zero:
            show(self.run.report)

    def _finish(self, state: Any) -> None:
        """Write the final report, once, and give it to the trackers."""
        if self._facts is None or self._prefix is None or not self._facts.partial:
            return
        self._facts.finish(state.log_history, self._prefix.to_dict())
        self.run.publish(make_report(self._facts))
        self.run.publisher.track(self.run.report)
