"""Counts what a model's layers and head hold in a step by running them on tensors that have shapes and no values.

Nothing is computed and nothing is allocated, so a model of any size is traced in seconds from its configuration alone.
Layers that are alike are traced once. A model whose forward looks at values (routing that picks rows, masks read back)
cannot be traced.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from layercard.anatomy.backward_watch import hidden_of, with_hidden
from layercard.anatomy.layers import LayerStack, find_layers
from layercard.anatomy.adaptable import layers_held
from layercard.anatomy.targets import find_targets
from layercard.cost.memory import LiveBytes
from layercard.cost.packed import pack_linear, with_storage
from layercard.cost.peak import LayerBytes, ModelBytes, PassBytes
from layercard.errors import ModelError

Bits: TypeAlias = Literal[4, 8]
UNTRACEABLE = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError, NotImplementedError)
"""What a model may raise whose forward asks tensors for values that they do not have."""
TILE_ROWS, TILE_COLUMNS = 4096, 32768
"""How much of the logits a fused head holds at once: TRL's tile of tokens and vocabulary."""


@dataclass(frozen=True)
class RunShape:
    """How a run trains the model: what decides the bytes beside the model and its batch."""

    dtype: torch.dtype = torch.bfloat16
    """Of the weights, or of what 4-bit and 8-bit weights are unpacked to."""
    bits: Bits | None = None
    """Of the linear modules' weights, where they are packed."""
    autocast: torch.dtype | None = None
    """What mixed precision computes in."""
    rank: int = 16
    adapter_dtype: torch.dtype = torch.float32
    fused_head: bool = True
    """Whether the loss is computed from tiles of the logits, as TRL and Liger do, never from all of them."""


@dataclass(frozen=True)
class _Call:
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def hidden(self) -> Tensor:
        hidden = hidden_of(self.args, self.kwargs)
        if hidden is None:
            raise ModelError("A layer is not called with hidden states, so its memory cannot be counted alone.")
        return hidden


def trace_bytes(
    bare: nn.Module,
    stack: LayerStack,
    batch: Mapping[str, Tensor],
    shape: RunShape,
    *,
    target_modules: Sequence[str] | None = None,
) -> ModelBytes:
    """Return what `bare`, a transformers model without adapters on the meta device, holds in a step on `batch`.

    `stack` are the layers of `bare`, which is left as it is; of `batch` only shapes and dtypes are read, and its forward
    returns a loss. `target_modules` are the names of modules that LoRA adapts (None: every linear one). Raises
    `ModelError` where the model cannot be run without values.
    """
    try:
        return _Trace(_frozen(bare, shape), stack.path, batch, shape).bytes(target_modules)
    except UNTRACEABLE as error:
        raise ModelError(
            f"The memory of {type(bare).__name__} cannot be predicted: its forward pass asks for values, and a prediction has "
            f"shapes alone ({type(error).__name__}). Measure it in a run; the report has its peaks."
        ) from error


def _frozen(bare: nn.Module, shape: RunShape) -> nn.Module:
    """A copy that keeps no keys and values, its linear modules packed where they are to be."""
    model = copy.deepcopy(bare).requires_grad_(False).train()
    if shape.bits is not None:
        pack_linear(model, shape.dtype, shape.bits)
    for module in model.modules():
        config = vars(module).get("config")
        if config is not None and "use_cache" in vars(config):
            config.use_cache = False
    return model


def _fake(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.zeros(values.shape, dtype=values.dtype) for name, values in batch.items()}


class _Trace:
    """A model on the meta device beside the same on tensors that have shapes and no values."""

    def __init__(self, model: nn.Module, path: str, batch: Mapping[str, Tensor], shape: RunShape) -> None:
        self._meta, self._path, self._shape = model, path, shape
        self._without_values = FakeTensorMode()
        fake = copy.deepcopy(model)
        with self._without_values:
            self._model = with_storage(fake, shape.dtype)
            self._batch = {name: torch.zeros(values.shape, dtype=values.dtype) for name, values in batch.items()}

    def bytes(self, target_modules: Sequence[str] | None) -> ModelBytes:
        """Return what it holds."""
        stack, shape = find_layers(self._model, path=self._path), self._shape
        with self._without_values:
            calls = _calls(self._model, stack, self._batch, shape)
            kinds = [_kind(layer, call) for layer, call in zip(stack.layers, calls, strict=True)]
        first = {kind: number for number, kind in reversed(list(enumerate(kinds)))}
        found = {kind: self._layer(number, calls[number], target_modules) for kind, number in first.items()}
        with self._without_values:
            return ModelBytes(
                weights=_size(tensor for tensors in (self._model.parameters(), self._model.buffers()) for tensor in tensors),
                layers=tuple(found[kind] for kind in kinds),
                hidden=_size([calls[0].hidden]),
                shared=_size(_beside(calls)),
                head=self._head(calls[-1], stack.layers[-1]),
            )

    def _layer(self, number: int, call: _Call, target_modules: Sequence[str] | None) -> LayerBytes:
        adapted = self._adapted(number, target_modules)
        layer = find_layers(self._model, path=self._path).layers[number]
        with self._without_values:
            frozen = _pass(layer, call, self._shape, requires_grad=True)
            still = _pass(layer, call, self._shape, requires_grad=False).forward
            if adapted is None:
                return LayerBytes(0, frozen, frozen, frozen, still)
            with_storage(adapted, self._shape.dtype, self._shape.adapter_dtype)
            return LayerBytes(
                adapters=_size(p for p in adapted.parameters() if p.requires_grad),
                adapted=_pass(adapted, call, self._shape, requires_grad=True),
                entry=_pass(adapted, call, self._shape, requires_grad=False),
                frozen=frozen,
                still=still,
            )

    def _adapted(self, number: int, target_modules: Sequence[str] | None) -> nn.Module | None:
        """The layer with adapters, None where it holds no target module."""
        from peft import LoraConfig, inject_adapter_in_model

        layer = copy.deepcopy(find_layers(self._meta, path=self._path).layers[number])
        alone = LayerStack(self._path, (layer,))
        if not layers_held(alone, target_modules):
            return None
        names = [target.name for target in find_targets(layer, alone, names=target_modules)]
        transposed = any(type(module).__name__ == "Conv1D" for module in layer.modules())
        config = LoraConfig(r=self._shape.rank, target_modules=names, fan_in_fan_out=transposed)
        with torch.device("meta"):
            adapted: nn.Module = inject_adapter_in_model(config, layer)
        return adapted

    def _head(self, call: _Call, last: nn.Module) -> int:
        if self._shape.fused_head:
            return _fused_head(self._model, call, self._shape)
        return _head(self._model, last, self._batch, self._shape)


def _size(tensors: Any) -> int:
    """The bytes of these tensors, those that share storage counted once."""
    storages = {id(tensor.untyped_storage()): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def _beside(calls: Sequence[_Call]) -> list[Tensor]:
    """What the layers are called with beside hidden states."""
    inputs = [leaf for call in calls for leaf in _leaves((call.args, call.kwargs))]
    hidden = {id(call.hidden) for call in calls}
    return [tensor for tensor in inputs if id(tensor) not in hidden]


def _leaves(tree: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _autocast(shape: RunShape) -> Any:
    return nullcontext() if shape.autocast is None else torch.autocast("cpu", shape.autocast)


def _calls(model: nn.Module, stack: LayerStack, batch: Mapping[str, Tensor], shape: RunShape) -> list[_Call]:
    """What the model calls each layer with."""
    calls: dict[int, _Call] = {}
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, args, kwargs, number=number: calls.__setitem__(number, _Call(args, kwargs)), with_kwargs=True
        )
        for number, layer in enumerate(stack.layers)
    ]
    try:
        with torch.no_grad(), _autocast(shape):
            model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    if len(calls) != len(stack):
        raise ModelError(f"{type(model).__name__} does not run all its layers, so its memory cannot be predicted.")
    return [calls[number] for number in range(len(stack))]


def _kind(layer: nn.Module, call: _Call) -> Any:
    """What layers that hold the same have in common."""
    modules = tuple((name, type(module).__name__) for name, module in layer.named_modules())
    tensors = tuple((name, p.shape, p.dtype) for name, p in (*layer.named_parameters(), *layer.named_buffers()))
    inputs = tuple((leaf.shape, leaf.dtype) for leaf in _leaves((call.args, call.kwargs)))
    windows = tuple(vars(m)["sliding_window"] for m in layer.modules() if "sliding_window" in vars(m))
    return modules, tensors, inputs, windows


def _pass(layer: nn.Module, call: _Call, shape: RunShape, *, requires_grad: bool) -> PassBytes:
    """Run the layer forward and backward on its own; what it was called with beside hidden states is not counted."""
    with LiveBytes() as live:
        hidden = torch.empty_like(call.hidden).requires_grad_(requires_grad)
        args, kwargs = with_hidden(call.args, call.kwargs, hidden)
        with _autocast(shape):
            output = _hidden_output(layer(*args, **kwargs))
        forward = live.peak
        if not output.requires_grad:
            return PassBytes(0, forward, forward)
        gradient, graph = torch.empty_like(output), _Graph(output)
        del args, kwargs, hidden, output
        kept = live.now - _size([gradient])
        live.forget_peak()
        graph.backward(gradient)
    return PassBytes(kept, forward, live.peak)


class _Graph:
    """The graph of a tensor without the tensor, so that only what was saved stays alive."""

    def __init__(self, output: Tensor) -> None:
        self._edge = torch.autograd.graph.get_gradient_edge(output)

    def backward(self, gradient: Tensor) -> None:
        """Run backward and give up the graph."""
        torch.autograd.backward([self._edge], [gradient])


def _head(model: nn.Module, last: nn.Module, batch: Mapping[str, Tensor], shape: RunShape) -> int:
    """The highest sum from the last layer's output up, forward and backward."""
    before = 0

    def begin(module: nn.Module, inputs: Any, output: Any) -> Any:
        nonlocal before
        hidden = _hidden_output(output)
        before = live.now - _size([hidden])
        live.forget_peak()
        entered = hidden.detach().requires_grad_()
        return (entered, *output[1:]) if isinstance(output, tuple) else entered

    hook = last.register_forward_hook(begin)
    try:
        with LiveBytes() as live:
            with _autocast(shape):
                loss: Tensor = model(**batch).loss
            loss.backward()
    finally:
        hook.remove()
    return live.peak - before


def _fused_head(model: Any, call: _Call, shape: RunShape) -> int:
    """The hidden states normed and not, their gradient in float32 and in their own dtype, and one tile of logits."""
    hidden = call.hidden
    head = model.get_output_embeddings()
    vocabulary = head.weight.shape[0]
    compute = shape.autocast or hidden.dtype
    rows = hidden.numel() // hidden.shape[-1]
    tile = min(rows, TILE_ROWS) * TILE_COLUMNS * compute.itemsize
    slice_of_head = 0 if compute == head.weight.dtype else min(vocabulary, TILE_COLUMNS) * hidden.shape[-1] * compute.itemsize
    return hidden.numel() * (2 * hidden.dtype.itemsize + hidden.dtype.itemsize + 4) + tile + slice_of_head


def _hidden_output(output: Any) -> Tensor:
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden
