"""Finds the stack of transformer layers in a model.

A layer is a whole transformer block, numbered from 0 at the input as PEFT's `layers_to_transform` numbers it. Offers
`LayerStack`, `find_layers`, `all_stacks` and `sole_stack`. Of several stacks the only one with adapters is meant; else two
stacks in one model are an error, never a guess.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import nn

from layercard.anatomy.words import describe as describe
from layercard.errors import LayersNotFoundError, ModelError, one_of

PEFT_PREFIX = "base_model.model."
"""What a PeftModel puts before the names of the model that it wraps."""


@dataclass(frozen=True)
class LayerStack:
    """The layers of a model in forward order.

    `path` is the dotted path of the list that holds them, relative to the model that was searched;
    `layers[i]` is the module of layer i.
    """

    path: str
    layers: tuple[nn.Module, ...]

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def pattern(self) -> str:
        """The list's own name, PEFT's `layers_pattern`: the last part of `path`, such as `layers` or `h`."""
        return self.path.rsplit(".", 1)[-1]

    def name(self, layer: int) -> str:
        """Return the dotted path of `layer`."""
        return f"{self.path}.{layer}"

    def layer_of(self, module_name: str) -> int | None:
        """Return the layer that the module or parameter of this dotted path lies in, or None."""
        prefix = f"{self.path}."
        if not module_name.startswith(prefix):
            return None
        index = module_name[len(prefix) :].split(".", 1)[0]
        return int(index) if index.isdigit() and int(index) < len(self) else None


def find_layers(model: nn.Module, *, path: str | None = None) -> LayerStack:
    """Return the model's stack of layers; `path` (the end of a dotted path) chooses where there are several.

    Without it the only stack that holds adapters is meant. Raises `LayersNotFoundError` where there is no stack or more than
    one, `ModelError` where layers are shared (ALBERT). Plugins answer for other models through the hook
    `locate_decoder_layers`; the pipeline asks them first.
    """
    stack = _only_one(model, all_stacks(model), path)
    _refuse_shared(model, stack)
    return stack


def sole_stack(model: nn.Module, names: Collection[str]) -> str | None:
    """Return the path of the only one of several stacks that holds modules of these `names`; None where that decides nothing."""
    stacks = all_stacks(model)
    holding = [stack for stack in stacks if any(stack.layer_of(name) is not None for name in names)]
    return holding[0].path if len(stacks) > 1 and len(holding) == 1 else None


def all_stacks(model: nn.Module) -> list[LayerStack]:
    """Return every outermost list of blocks: modules of one family, each holding modules with matrices."""
    found: list[LayerStack] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{stack.path}.") for stack in found)
        if isinstance(module, nn.ModuleList) and len(module) > 0 and not inside and all(map(_is_block, module)):
            found.append(LayerStack(name, tuple(module)))
    return found


def _is_block(module: nn.Module) -> bool:
    """Whether it may be a transformer layer: several matrices under it, and a norm or an attention of its own."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers.modeling_layers import GradientCheckpointingLayer

    if isinstance(module, GradientCheckpointingLayer):
        return True
    if isinstance(
        module, nn.ModuleList | BaseTunerLayer
    ):  # a list is never called; one adapted matrix looks like several
        return False
    children = list(module.children())
    matrices = sum(p.dim() >= 2 for p in module.parameters())
    return len(children) >= 2 and matrices >= 2


def _only_one(model: nn.Module, stacks: list[LayerStack], path: str | None) -> LayerStack:
    kind = type(model).__name__
    if path is not None:
        chosen = [s for s in stacks if s.path == path or s.path.endswith(f".{path}")]
        if len(chosen) == 1:
            return chosen[0]
        raise LayersNotFoundError(
            f"`layers_path` is {path!r}, which fits {len(chosen)} stacks of layers of {kind}. It has "
            f"{one_of(s.path for s in _language_first(model, stacks)) or 'none'}. Give the end of one path."
        )
    if not stacks:
        raise LayersNotFoundError(
            f"No stack of transformer layers was found in {kind}. Supported are models that keep their layers in one "
            "torch.nn.ModuleList. For others, write a plugin that answers the hook `locate_decoder_layers`."
        )
    adapted = [stack for stack in stacks if _has_adapters(stack)]
    if len(stacks) > 1 and len(adapted) == 1:
        return adapted[0]
    if len(stacks) > 1:
        ordered = _language_first(model, stacks)
        named = " and ".join(f"`{s.path}` ({len(s)} layers)" for s in ordered)
        raise LayersNotFoundError(
            f"{kind} has {len(stacks)} stacks of layers: {named}. Placement works on one. Choose with `layers_path`, "
            f"for example `layers_path: {ordered[0].path.removeprefix(PEFT_PREFIX)}`."
        )
    return stacks[0]


def _has_adapters(stack: LayerStack) -> bool:
    from peft.tuners.lora import LoraLayer

    return any(isinstance(module, LoraLayer) for layer in stack.layers for module in layer.modules())


def _language_first(model: nn.Module, stacks: list[LayerStack]) -> list[LayerStack]:
    """Put the stack that generates text in front, where transformers tells which it is."""
    from transformers import PreTrainedModel

    task = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    if task is None:
        return stacks
    decoder = task.get_decoder()
    inside = {id(module) for module in decoder.modules()} if isinstance(decoder, nn.Module) else set()
    held = [id(stack.layers[0]) in inside for stack in stacks]
    if sum(held) != 1:
        return stacks
    return [stacks[held.index(True)], *(s for s, chosen in zip(stacks, held, strict=True) if not chosen)]


def _refuse_shared(model: nn.Module, stack: LayerStack) -> None:
    config = getattr(model, "config", None)
    text = config.get_text_config() if config is not None and hasattr(config, "get_text_config") else None
    expected = getattr(text, "num_hidden_layers", None)
    distinct = len({id(layer) for layer in stack.layers})
    if distinct < len(stack) or (isinstance(expected, int) and len(stack) < expected and _shares(model)):
        raise ModelError(
            f"{type(model).__name__} runs {expected or len(stack)} layers with the weights of {distinct} (shared layers). "
            "A layer cannot be adapted apart from those it shares weights with; train all of them, without `lora_layers`."
        )


def _shares(model: nn.Module) -> bool:
    """ALBERT's configurations say how many groups of weights the layers share."""
    return hasattr(getattr(model, "config", None), "num_hidden_groups")
