"""Predicts what a placement does to the step time, from depth alone, before anything is timed.

The unit is the forward pass of one layer without adapters, over the same tokens. A step costs

    forward      every layer once                        (placed with a cached prefix: from the entry up)
    recompute    under checkpointing, every layer that backpropagation passes, once more
    backward     every layer that backpropagation passes: the gradient of its input only, for its weights are frozen
    adapters     each adapted layer: forward, the same again where it is recomputed, backward
    head         the language modelling head and the loss, forward and backward

Backpropagation passes the layers from the lowest adapted one up; where the host's input-gradient hook stays
(`gradient_entry=False`), all of them. The optimizer step, embeddings and communication are left out: the first is small
for adapters, the others are the same in both. Not for truth but for choosing: a report measures.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace


@dataclass(frozen=True)
class UnitCosts:
    """Costs in forward passes of one bare layer. Defaults were fitted to CPU step times of 24 and 30 narrow layers.

    With them the last 5 of 30 layers under checkpointing come out 1.3 times as fast as all-layer LoRA, 2.7 times with
    the gradient entry moved and 5.6 times with the prefix cached too; 1.25–1.31, 2.9–3.0 and 5.5 were measured.
    """

    layer_forward: float = 1.0
    layer_backward: float = 1.0
    adapter_forward: float = 0.3
    """All adapters of one layer; small matrices, so far more than their share of multiplications."""
    adapter_backward: float = 0.6
    head_forward: float = 1.0
    head_backward: float = 1.0

    @classmethod
    def with_head(cls, head_parameters: int, layer_parameters: int) -> UnitCosts:
        """Return defaults with a head as costly as its parameters are many beside those of one layer."""
        head = head_parameters / layer_parameters
        return cls(head_forward=head, head_backward=head)

    def at_width(self, width: int) -> UnitCosts:
        """Return the same with adapters as costly as measured where hidden states are so wide, and no more than before.

        Fitted at widths of 576 to 4,096, in bf16 on a CPU (`benchmarks/unit_costs`): the work of adapters grows with the width,
        a layer's with its square.
        """
        return replace(
            self,
            adapter_forward=min(self.adapter_forward, 0.09 + 190 / width),
            adapter_backward=min(self.adapter_backward, 0.06 + 330 / width),
        )


@dataclass(frozen=True)
class StepUnits:
    """What one step costs, in forward passes of one bare layer."""

    forward: float
    recompute: float
    backward: float
    adapters: float
    head: float

    @property
    def total(self) -> float:
        """The whole step."""
        return self.forward + self.recompute + self.backward + self.adapters + self.head


@dataclass(frozen=True)
class StepPrediction:
    """A placed step beside the all-layer one in the same setup."""

    all_layer: StepUnits
    placed: StepUnits

    @property
    def ratio(self) -> float:
        """Placed step time over all-layer step time; under 1 is faster."""
        return self.placed.total / self.all_layer.total

    @property
    def speedup(self) -> float:
        """All-layer step time over placed step time."""
        return self.all_layer.total / self.placed.total


def step_cost(
    num_layers: int,
    layers: Collection[int],
    *,
    checkpointing: bool,
    gradient_entry: bool = True,
    prefix_cached: bool = False,
    resting: int = 0,
    units: UnitCosts | None = None,
) -> StepUnits:
    """Return the cost of a step that adapts `layers` of `num_layers`.

    `prefix_cached`: the layers below the lowest adapted one are not run at all; only with `gradient_entry`. `resting` layers
    below it have adapters that learn no more, and run forward alone.
    """
    units = units or UnitCosts()
    entry = min(layers)
    passed = num_layers - entry if gradient_entry else num_layers
    run = num_layers - entry if prefix_cached and gradient_entry else num_layers
    adapter_forwards = 2 if checkpointing else 1
    adapter = adapter_forwards * units.adapter_forward + units.adapter_backward
    return StepUnits(
        forward=run * units.layer_forward,
        recompute=passed * units.layer_forward if checkpointing else 0.0,
        backward=passed * units.layer_backward,
        adapters=len(layers) * adapter + resting * units.adapter_forward,
        head=units.head_forward + units.head_backward,
    )


def predict_step(
    num_layers: int,
    layers: Collection[int],
    *,
    checkpointing: bool,
    gradient_entry: bool = True,
    recompute_above_entry: bool = True,
    prefix_cached: bool = False,
    resting: int = 0,
    units: UnitCosts | None = None,
    adaptable: Collection[int] | None = None,
    all_layer_entry: bool = False,
) -> StepPrediction:
    """Return the predicted placed step beside the all-layer step of the same host.

    `checkpointing` is the trainer's; `recompute_above_entry=False` turns it off for the placed step alone. `adaptable` are
    the layers that all-layer LoRA adapts (None: every layer); with `all_layer_entry` its backpropagation ends at the
    lowest of them, as it does by itself without checkpointing, else at the input.
    """
    every = range(num_layers) if adaptable is None else adaptable
    return StepPrediction(
        all_layer=step_cost(
            num_layers, every, checkpointing=checkpointing, gradient_entry=all_layer_entry, units=units
        ),
        placed=step_cost(
            num_layers,
            layers,
            checkpointing=checkpointing and recompute_above_entry,
            gradient_entry=gradient_entry,
            prefix_cached=prefix_cached,
            resting=resting,
            units=units,
        ),
    )


def mean_prediction(parts: Sequence[tuple[float, StepPrediction]]) -> StepPrediction:
    """Return the mean step of a run that trains in parts: (share of its steps, prediction) each; shares sum to 1."""
    placed = {f.name: sum(share * getattr(p.placed, f.name) for share, p in parts) for f in fields(StepUnits)}
    return StepPrediction(parts[0][1].all_layer, StepUnits(**placed))


def predict_step_ratio(
    num_layers: int,
    layers: Collection[int],
    *,
    checkpointing: bool,
    gradient_entry: bool = True,
    recompute_above_entry: bool = True,
    prefix_cached: bool = False,
    units: UnitCosts | None = None,
    adaptable: Collection[int] | None = None,
    all_layer_entry: bool = False,
) -> float:
    """Return the predicted placed step time over the all-layer step time; under 1 is faster."""
    return predict_step(
        num_layers,
        layers,
        checkpointing=checkpointing,
        gradient_entry=gradient_entry,
        recompute_above_entry=recompute_above_entry,
        prefix_cached=prefix_cached,
        units=units,
        adaptable=adaptable,
        all_layer_entry=all_layer_entry,
    ).ratio
