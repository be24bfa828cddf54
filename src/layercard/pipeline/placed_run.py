"""`PlacedRun`: a trainer whose adapters were narrowed. `place` makes it, `during/` runs it, users hold it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from layercard.anatomy.verify import verify_placement
from layercard.cost.predict import UnitCosts
from layercard.cost.speedup import SpeedupReport
from layercard.errors import HostError
from layercard.pipeline.before.other_parts import towers_to_shed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from layercard.anatomy.layers import LayerStack
    from layercard.anatomy.narrow import Narrowing
    from layercard.hosts.protocol import Host
    from layercard.pipeline.before.other_parts import Trainables
    from layercard.pipeline.during.control import ControlLoss
    from layercard.placement.placement import LayerPlacement
    from layercard.probing.statistics import LayerStatistics
    from layercard.scores.base import LayerScores
    from layercard.settings import PlacementSettings


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
        control: ControlLoss | None = None,
    ) -> None:
        self.host, self.stack, self.placement = host, stack, placement
        self.model: Any = host.model
        self.narrowing, self.settings, self.probe_seconds = narrowing, settings, probe_seconds
        self.statistics, self.scores = statistics, scores
        self.identity: dict[str, Any] = {}
        self.units = UnitCosts()
        self.control = control
        self.in_force = ExitStack()
        """Gradient entry, prefix cache and hooks while the run trains."""
        self._trainables = trainables
        self._report: SpeedupReport | None = None

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

    def tell(self, report: SpeedupReport) -> None:
        """Make this the run's report."""
        self._report = report

    def close(self) -> None:
        """Undo what is in force for training; needed only after an exception inside `train()`."""
        self.in_force.close()
