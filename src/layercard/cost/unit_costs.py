"""Measures the unit costs that predictions are made of, on one layer and the head of the model itself.

The layer runs on the very arguments that the model calls it with, bare and with adapters on its target modules; the
head and the loss run from the last layer's output up. Timing does not depend on the weights' values, so a model of two
layers with random weights stands for a deep one. Knows nothing of placements.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from layercard.anatomy.backward_watch import hidden_of, with_hidden
from layercard.anatomy.layers import LayerStack
from layercard.cost.predict import UnitCosts
from layercard.cost.timing import synchronize
from layercard.errors import ModelError
from layercard.progress import Progress

ROUNDS = 5
LONGEST_SECONDS = 6.0
"""After so long no further round begins: a large layer on a slow machine is timed once."""
MOST_ROUNDS = 50


def measure_unit_costs(
    model: nn.Module,
    stack: LayerStack,
    batch: Mapping[str, Any],
    *,
    target_modules: Sequence[str],
    rank: int = 8,
    rounds: int = ROUNDS,
    seconds: float = 0.0,
) -> UnitCosts:
    """Return the costs of layer, adapters and head in forward passes of one bare layer.

    Parameters: `model` without adapters, whose forward on `batch` returns a loss; `target_modules` the names, inside a
    layer, of the modules that LoRA of `rank` adapts; `rounds` how often each is run, after one warm-up, fewer where that
    takes more than `LONGEST_SECONDS`, and more, up to `MOST_ROUNDS`, until `seconds` are over. Bare and adapted runs
    alternate; a cost is the median, and an adapter's the median difference of a round, at least 0.
    Raises `ModelError` where the model cannot be run from a layer on. The model is left as it was.
    """
    began = time.perf_counter()
    with Progress("timing a layer and the head", total=1 + rounds) as progress, _quiet(model):
        call = _call_of(model, stack.layers[-1], batch)
        bare = copy.deepcopy(stack.layers[-1])
        adapted = _adapted(copy.deepcopy(bare), target_modules, rank)
        without, with_adapters = _Timed(_layer_forward(bare, call)), _Timed(_layer_forward(adapted, call))
        head = _Timed(lambda: _head_forward(model, stack.layers[-1], batch))
        for done in range(1 + MOST_ROUNDS):
            taken = time.perf_counter() - began
            if (done > 1 and taken > LONGEST_SECONDS) or (done > rounds and taken > seconds):
                break
            for timed in (without, with_adapters, head):
                timed.run()
            if done <= rounds:
                progress.advance()
    return _units(without, with_adapters, head)


def estimate_unit_costs(model: Any, stack: LayerStack) -> UnitCosts:
    """Return default unit costs, with a head by its parameters beside a layer's and adapters by the width of hidden states.

    The model, a transformers or PEFT one, may be on the meta device or quantized; another has no head and no width that
    are known.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    in_head = 0 if head is None else _weights(head)
    units = UnitCosts.with_head(in_head, max(1, sum(map(_weights, stack.layers)) // len(stack)))
    width = _width(model)
    return units if width is None else units.at_width(width)


def _width(model: Any) -> int | None:
    """What the configuration says that hidden states are wide, None where there is none or several."""
    config: Any = getattr(model, "config", None)
    width = getattr(config.get_text_config(), "hidden_size", None) if hasattr(config, "get_text_config") else None
    return width if isinstance(width, int) and width > 0 else None


def _weights(module: nn.Module) -> int:
    """The base weights under `module`; 4-bit ones are packed two to a byte."""
    named = [(name, p) for name, p in module.named_parameters() if "lora_" not in name]
    return sum(math.prod(vars(p)["quant_state"].shape) if "quant_state" in vars(p) else p.numel() for _, p in named)


@dataclass(frozen=True)
class _Call:
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Timed:
    """Seconds of a forward and of its backward, run by run; the first is the warm-up."""

    def __init__(self, forward: Callable[[], tuple[float, Tensor]]) -> None:
        self._forward = forward
        self._seconds: list[tuple[float, float]] = []

    def run(self) -> None:
        """Run forward, which clocks itself, and backward once."""
        seconds, output = self._forward()
        gradient = torch.ones_like(output)
        begun = _now()
        output.backward(gradient)
        self._seconds.append((seconds, _now() - begun))

    @property
    def forward(self) -> list[float]:
        """Seconds of the forward passes."""
        return [seconds for seconds, _ in self._seconds[1:]]

    @property
    def backward(self) -> list[float]:
        """Seconds of the backward passes."""
        return [seconds for _, seconds in self._seconds[1:]]


def _units(bare: _Timed, adapted: _Timed, head: _Timed) -> UnitCosts:
    unit = statistics.median(bare.forward)
    return UnitCosts(
        layer_forward=1.0,
        layer_backward=statistics.median(bare.backward) / unit,
        adapter_forward=max(0.0, _median_difference(adapted.forward, bare.forward)) / unit,
        adapter_backward=max(0.0, _median_difference(adapted.backward, bare.backward)) / unit,
        head_forward=statistics.median(head.forward) / unit,
        head_backward=statistics.median(head.backward) / unit,
    )


def _median_difference(longer: Sequence[float], shorter: Sequence[float]) -> float:
    """The two of a round were timed one after the other, under the same load."""
    return statistics.median(one - other for one, other in zip(longer, shorter, strict=True))


def _now() -> float:
    synchronize()
    return time.perf_counter()


@contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """Freeze the model and keep no keys and values inside the block; a decoder may have a configuration of its own."""
    configs = {id(vars(m)["config"]): vars(m)["config"] for m in model.modules() if "config" in vars(m)}.values()
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    keeps = [(config, vars(config)["use_cache"]) for config in configs if "use_cache" in vars(config)]
    model.requires_grad_(False)
    for config, _ in keeps:
        config.use_cache = False
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for config, kept in keeps:
            config.use_cache = kept


def _call_of(model: nn.Module, layer: nn.Module, batch: Mapping[str, Any]) -> _Call:
    """What the model calls `layer` with."""
    calls: list[_Call] = []
    hook = layer.register_forward_pre_hook(lambda _, args, kwargs: calls.append(_Call(args, kwargs)), with_kwargs=True)
    try:
        with torch.no_grad():
            model(**batch)
    finally:
        hook.remove()
    if not calls or hidden_of(calls[0].args, calls[0].kwargs) is None:
        raise ModelError(
            f"{type(model).__name__} does not call its last layer with hidden states, so its cost cannot be measured alone. "
            "Predictions keep their default costs."
        )
    return calls[0]


def _adapted(layer: nn.Module, target_modules: Sequence[str], rank: int) -> nn.Module:
    from peft import LoraConfig, inject_adapter_in_model

    layer.requires_grad_(False)
    transposed = any(type(module).__name__ == "Conv1D" for module in layer.modules())
    config = LoraConfig(r=rank, target_modules=list(target_modules), fan_in_fan_out=transposed)
    adapted: nn.Module = inject_adapter_in_model(config, layer)
    return adapted


def _layer_forward(layer: nn.Module, call: _Call) -> Callable[[], tuple[float, Tensor]]:
    def forward() -> tuple[float, Tensor]:
        hidden = hidden_of(call.args, call.kwargs)
        assert hidden is not None  # `_call_of` saw it
        args, kwargs = with_hidden(call.args, call.kwargs, hidden.detach().requires_grad_())
        begun = _now()
        output = layer(*args, **kwargs)
        return _now() - begun, _hidden_output(output)

    return forward


def _head_forward(model: nn.Module, last: nn.Module, batch: Mapping[str, Any]) -> tuple[float, Tensor]:
    """Run the model, clocked from the moment its last layer is through, where the graph begins."""
    began = 0.0

    def begin(module: nn.Module, inputs: Any, output: Any) -> Any:
        nonlocal began
        hidden = _hidden_output(output).detach().requires_grad_()
        began = _now()
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    hook = last.register_forward_hook(begin)
    try:
        loss: Tensor = model(**batch).loss
    finally:
        hook.remove()
    return _now() - began, loss


def _hidden_output(output: Any) -> Tensor:
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden
