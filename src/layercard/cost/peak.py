"""Predicts the peak memory of a training run that adapts some layers, in bytes, before anything is run.

A step holds, at each moment,

    weights      of the whole model, as they are stored
    adapters     of the adapted layers; after their backward, as many bytes of gradients
    kept         what the backward passes still to come will read: of each layer that backpropagation passes its saved
                 tensors, or under checkpointing its input alone; of layers below the entry nothing
    at work      the layer or head that is running, at its own highest

and the optimizer's state from the first optimizer step on. The peak is the highest sum over the moments: every layer's
forward, the head with its loss, every layer's backward, the optimizer step. What a layer keeps and needs is counted
elsewhere (`cost/traced.py`). The allocator's fragments, the device's context and what kernels allocate inside
themselves are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cache

PARTS_IN_MEMORY = {"adafactor": 0.0, "sgd": 0.0, "lion": 1.0, "rmsprop": 1.0, "adagrad": 1.0}
"""Numbers that optimizers keep of a parameter, by what their names begin with behind `paged_`; others keep two, as AdamW."""


@dataclass(frozen=True)
class PassBytes:
    """What one layer holds in a step, in bytes; its input and the gradient of its output are counted in."""

    kept: int
    """From its forward pass until its backward pass: saved tensors, its input among them where it is saved."""
    forward: int
    """At the highest moment of its forward pass."""
    backward: int
    """At the highest moment of its backward pass, with what was kept and with its adapters' gradients."""


@dataclass(frozen=True)
class LayerBytes:
    """One layer; `adapters` are the bytes of the parameters that its adapters have, or would have."""

    adapters: int
    adapted: PassBytes
    """With adapters, its input requires a gradient."""
    entry: PassBytes
    """With adapters, its input requires none."""
    frozen: PassBytes
    """Without adapters; the gradient passes through."""
    still: int
    """At the highest moment of a forward pass without a graph."""


@dataclass(frozen=True)
class ModelBytes:
    """A model and the batch that it reads, in bytes."""

    weights: int
    """Every parameter and buffer, adapters left out."""
    layers: tuple[LayerBytes, ...]
    hidden: int
    """The hidden states between two layers."""
    shared: int
    """What all layers read beside them: masks, rotary angles."""
    head: int
    """At the highest moment of head and loss, forward and backward, their input counted in."""


@dataclass(frozen=True)
class Peak:
    """The bytes held at the highest moment of training."""

    weights: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int
    """What is kept for the backward pass, and what is at work."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.adapters + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class Training:
    """How a run trains: what of the peak does not follow from the model and the layers."""

    checkpointing: bool
    gradient_entry: bool = True
    """Whether backpropagation ends at the lowest adapted layer, else at the model's input."""
    optimizer_state: float = 2.0
    """Bytes of optimizer state over bytes of trainable parameters; 0 before the first optimizer step."""
    accumulating: bool = False
    """Whether gradients of earlier micro-batches are held all the time."""


def predict_peak(model: ModelBytes, layers: Collection[int], training: Training) -> Peak:
    """Return what a run that adapts `layers` (numbers of layers, at least one) holds at its highest moment."""
    trainable = sum(model.layers[layer].adapters for layer in layers)
    state = round(training.optimizer_state * trainable)
    activations, gradients = max(_moments(model, frozenset(layers), training), key=sum)
    return Peak(model.weights, trainable, gradients, state, activations)


def peaks_of(model: ModelBytes, training: Training) -> Callable[[Collection[int]], int]:
    """Return what predicts the peak of any set of layers, in bytes; each set is counted once."""

    @cache
    def total(layers: frozenset[int]) -> int:
        return predict_peak(model, layers, training).total

    return lambda layers: total(frozenset(layers))


def optimizer_state(name: str, itemsize: int) -> float:
    """Return the bytes of state over bytes of trainable parameters of `itemsize` bytes each, by what a trainer calls it.

    Optimizers that are not known count as AdamW, which keeps two numbers of the parameters' dtype; 8-bit ones keep bytes.
    """
    kind = name.removeprefix("paged_")
    numbers = next((count for start, count in PARTS_IN_MEMORY.items() if kind.startswith(start)), 2.0)
    return numbers / itemsize if "8bit" in kind else numbers


def _moments(model: ModelBytes, layers: frozenset[int], training: Training) -> Iterator[tuple[int, int]]:
    """Yield the bytes of activations and of gradients at every moment that may be the highest."""
    passed = range(min(layers) if training.gradient_entry else 0, len(model.layers))
    trainable = sum(model.layers[layer].adapters for layer in layers)
    gradients = trainable if training.accumulating else 0
    held, kept = model.shared, []
    for number, layer in enumerate(model.layers):
        yield held + _forward(model, layers, training, number, passed), gradients
        if number in passed:
            kept.append(model.hidden if training.checkpointing else _pass(layer, number, layers, training).kept)
            held += kept[-1]
    yield held + model.head, gradients
    for number in reversed(passed):
        held -= kept.pop()
        yield held + _backward(model, layers, training, number), gradients
        if number in layers and not training.accumulating:
            gradients += model.layers[number].adapters
    yield 0, trainable + (trainable if training.optimizer_state else 0)  # an update as large as what it updates


def _pass(layer: LayerBytes, number: int, layers: frozenset[int], training: Training) -> PassBytes:
    if number not in layers:
        return layer.frozen
    return layer.entry if training.gradient_entry and number == min(layers) else layer.adapted


def _forward(model: ModelBytes, layers: frozenset[int], training: Training, number: int, passed: range) -> int:
    layer = model.layers[number]
    if training.checkpointing or number not in passed:
        return layer.still
    return _pass(layer, number, layers, training).forward


def _backward(model: ModelBytes, layers: frozenset[int], training: Training, number: int) -> int:
    """A checkpointed layer runs forward again, with the gradient of its output waiting, and then backward."""
    passing = _pass(model.layers[number], number, layers, training)
    if not training.checkpointing:
        return passing.backward
    return max(model.hidden + passing.forward, passing.backward)
