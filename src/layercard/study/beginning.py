"""What is measured when a training run begins: the model prepared as it trains, the run ended after its first step.

`at_beginning` runs a measurement there and leaves model, trainer and random state as they were; `placed` puts a set of
layers in force for a block, as a placed run trains it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from peft import PeftModel
from transformers import TrainerCallback

from layercard.anatomy.gradient_entry import GradientEntry
from layercard.anatomy.layers import LayerStack
from layercard.cost.untouched import untouched
from layercard.hosts.plain import PlainHost
from layercard.study.adapting import entry_of, narrowed

Found = TypeVar("Found")


def at_beginning(host: PlainHost, measure: Callable[[Any], Found]) -> Found:
    """Start the trainer, return what `measure` found when training began, and end the run after its first step.

    `measure` is given the trainer's arguments.
    """
    found: list[Found] = []
    host.trainer.add_callback(_AtBeginning(host, lambda args: found.append(measure(args))))
    host.trainer.train()
    return found[0]


class _AtBeginning(TrainerCallback):
    def __init__(self, host: PlainHost, measure: Callable[[Any], None]) -> None:
        self._host, self._measure = host, measure

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure on the model as it trains."""
        with self._host.preserved(), untouched(self._host.model):
            self._measure(args)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop: what was wanted is measured."""
        control.should_training_stop = True


@contextmanager
def placed(
    model: PeftModel,
    stack: LayerStack,
    layers: Sequence[int],
    args: Any,
    *,
    moved: bool = True,
    shed_towers: Collection[str] = (),
) -> Iterator[GradientEntry | None]:
    """Adapt only `layers` inside the block, the gradient entry moved to the lowest one, as a placed run trains.

    Yields the moved entry; None where it stays with the host: not `moved`, or something stands in its way.
    """
    with narrowed(model, stack, layers, shed_towers):
        entry = entry_of(model, stack, layers, args) if moved else None
        if entry is None:
            yield None
            return
        with entry:
            yield entry
