"""Counts what a model's layers and head hold in a step by running them on tensors that have shapes and no values.

Nothing is computed and nothing is allocated, so a model of any size is traced in seconds from its configuration alone.
Layers that are alike are traced once. A model whose forward looks at values (routing that picks rows, masks read back)
cannot be traced.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from transformers import PreTrainedModel

from layercard.anatomy.adaptable import layers_held
from layercard.anatomy.layers import LayerStack, find_layers
from layercard.anatomy.targets import find_targets
from layercard.cost.held import Call, calls_of, held_by_head, held_by_layer, held_by_tiles, size
from layercard.cost.packed import pack_linear, with_storage
from layercard.cost.peak import LayerBytes, ModelBytes
from layercard.errors import ModelError

Bits: TypeAlias = Literal[4, 8]
UNTRACEABLE = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError, NotImplementedError)
"""What a model may raise whose forward asks tensors for values that they do not have."""


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
    tiled_head: bool = True
    """Whether the loss is computed from tiles of the logits, as TRL's and Liger's are, never from all of them; in models that
    do not take that it never is."""
    tiles_in_place: bool = True
    """Whether a kernel works on a tile, as on GPUs; torch operations make copies of it."""


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
    returns a loss. With an `attention_mask` the rows count as padded, which costs a mask and, with grouped queries, copies of
    keys and values; without one as full. `target_modules` are the names of modules that LoRA adapts (None: every linear
    one). Raises `ModelError` where the model cannot be run without values.
    """
    try:
        with _quiet():
            return _Trace(_frozen(bare, shape), stack.path, batch, shape).bytes(target_modules)
    except UNTRACEABLE as error:
        found = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        raise ModelError(
            f"The memory of {type(bare).__name__} cannot be predicted, since its forward pass does not run on shapes alone "
            f"({found}). Measure it in a run; the report has its peaks."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch logs the stack of what then is raised."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    found, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = found


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


class _Trace:
    """A model on the meta device beside the same on tensors that have shapes and no values."""

    def __init__(self, model: nn.Module, path: str, batch: Mapping[str, Tensor], shape: RunShape) -> None:
        self._meta, self._path, self._shape = model, path, shape
        self._without_values = FakeTensorMode()
        fake = copy.deepcopy(model)
        with self._without_values:
            self._model: Any = with_storage(fake, shape.dtype)
            self._batch = {name: torch.zeros(values.shape, dtype=values.dtype) for name, values in batch.items()}

    def bytes(self, target_modules: Sequence[str] | None) -> ModelBytes:
        """Return what it holds."""
        stack, shape = find_layers(self._model, path=self._path), self._shape
        with self._without_values:
            calls = calls_of(self._model, stack.layers, self._batch, shape.autocast)
            if "attention_mask" not in self._batch:
                calls = [call.of_full_rows(layer) for call, layer in zip(calls, stack.layers, strict=True)]
            kinds = [_kind(layer, call) for layer, call in zip(stack.layers, calls, strict=True)]
        first = {kind: number for number, kind in reversed(list(enumerate(kinds)))}
        found = {kind: self._layer(number, calls[number], target_modules) for kind, number in first.items()}
        with self._without_values:
            return ModelBytes(
                weights=size(
                    tensor for tensors in (self._model.parameters(), self._model.buffers()) for tensor in tensors
                ),
                layers=tuple(found[kind] for kind in kinds),
                hidden=size([calls[0].hidden]),
                shared=size(_beside(calls)),
                head=self._head(calls[-1], stack.layers[-1]),
            )

    def _layer(self, number: int, call: Call, target_modules: Sequence[str] | None) -> LayerBytes:
        adapted = self._adapted(number, target_modules)
        layer = find_layers(self._model, path=self._path).layers[number]
        with self._without_values:
            frozen = held_by_layer(layer, call, self._shape.autocast, requires_grad=True)
            still = held_by_layer(layer, call, self._shape.autocast, requires_grad=False).forward
            if adapted is None:
                return LayerBytes(0, frozen, frozen, frozen, still)
            with_storage(adapted, self._shape.dtype, self._shape.adapter_dtype)
            return LayerBytes(
                adapters=size(p for p in adapted.parameters() if p.requires_grad),
                adapted=held_by_layer(adapted, call, self._shape.autocast, requires_grad=True),
                entry=held_by_layer(adapted, call, self._shape.autocast, requires_grad=False),
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

    def _head(self, call: Call, last: nn.Module) -> int:
        shape, model = self._shape, self._model
        if not (shape.tiled_head and takes_tiles(model)):
            return held_by_head(model, last, self._batch, shape.autocast)
        weights = model.get_output_embeddings().weight
        return held_by_tiles(call.hidden, weights, shape.autocast, in_place=shape.tiles_in_place)


def takes_tiles(model: Any) -> bool:
    """Whether the model's loss can be one from tiles of the logits: that of a decoder which alone generates text."""
    if not isinstance(model, PreTrainedModel) or model.get_output_embeddings() is None:
        return False
    return bool(model.can_generate()) and not model.config.is_encoder_decoder


def _beside(calls: Sequence[Call]) -> list[Tensor]:
    """What the layers are called with beside hidden states."""
    hidden = {id(call.hidden) for call in calls}
    return [tensor for call in calls for tensor in call.tensors if id(tensor) not in hidden]


def _kind(layer: nn.Module, call: Call) -> Any:
    """What layers that hold the same have in common."""
    modules = tuple((name, type(module).__name__) for name, module in layer.named_modules())
    tensors = tuple((name, p.shape, p.dtype) for name, p in (*layer.named_parameters(), *layer.named_buffers()))
    inputs = tuple((leaf.shape, leaf.dtype) for leaf in call.tensors)
    windows = tuple(vars(m)["sliding_window"] for m in layer.modules() if "sliding_window" in vars(m))
    return modules, tensors, inputs, windows
