"""Which trainable parameters run below a layer: what would lose its gradient if backpropagation ended there.

Offers `trainable_below` and `obstacle_below`, which says it in a sentence. What lies in the layers is told by
the stack. Above runs the task's head (outside the backbone, or the output embeddings). An encoder, or a tower for images or
sound, reads the model's input itself, so nothing outside of it runs below its layers. For any other stack the rest
(embeddings, towers, projectors and their like) is taken to run below, since a forward order cannot be read from names.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

from torch import Tensor, nn

from layercard.anatomy.layers import PEFT_PREFIX, LayerStack
from layercard.anatomy.other_stacks import in_towers, other_stacks

MODALITIES = ("vision_config", "audio_config")
"""Where a configuration holds that of a tower."""


def trainable_below(model: nn.Module, stack: LayerStack, entry: int) -> list[str]:
    """Return the names of parameters with `requires_grad` that run, or may run, below layer `entry`."""
    above = _ids(chain.from_iterable(layer.parameters() for layer in stack.layers[entry:])) | runs_above(model, stack)
    return [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in above]


def obstacle_below(model: nn.Module, stack: LayerStack, entry: int) -> str | None:
    """Return in one sentence what is trained below layer `entry`, or None."""
    names = trainable_below(model, stack, entry)
    if not names:
        return None
    return f"{_kind(names[0], model, stack, entry)} below layer {entry} (`{names[0]}`{_more(names)})."


def runs_above(model: nn.Module, stack: LayerStack) -> set[int]:
    """Return the ids of parameters outside `stack` that do not run below it, be they trained or not."""
    task = _task(model)
    if task is None:
        return set()
    above = _only_in(task, task.get_output_embeddings())
    if task.base_model is not task:
        above |= _ids(task.parameters()) - _ids(task.base_model.parameters())
    first = first_tower(model, stack)
    return above if first is None else above | (_ids(task.parameters()) - _ids(first.parameters()))


def first_tower(model: nn.Module, stack: LayerStack) -> nn.Module | None:
    """Return the part of `model` that holds `stack` and reads the model's input itself, where other parts read it.

    That is the encoder before a decoder, or the tower that reads images or sound for a language model. Nothing outside of
    it runs below its layers. None where the stack lies in no such part.
    """
    from transformers import PreTrainedModel

    task = _task(model)
    if task is None:
        return None
    kinds = {type(vars(task.config)[name]) for name in MODALITIES if vars(task.config).get(name) is not None}
    if kinds:
        towers = [m for m in task.modules() if isinstance(m, PreTrainedModel) and type(m.config) in kinds]
    else:
        towers = [task.get_encoder()] if task.config.is_encoder_decoder else []
    return next((tower for tower in towers if tower is not task and _holds(tower, stack)), None)


def layers_below(model: nn.Module, stack: LayerStack) -> list[nn.Module]:
    """Return the layers of other stacks that run below `stack`; torch warns of reentrant checkpoints of them when frozen."""
    if first_tower(model, stack) is not None:
        return []
    return [layer for other in other_stacks(model, stack) for layer in model.get_submodule(other.path).children()]


def _task(model: nn.Module) -> Any:
    """The outermost transformers model, or None."""
    from transformers import PreTrainedModel

    return next((m for m in model.modules() if isinstance(m, PreTrainedModel)), None)


def _holds(module: nn.Module, stack: LayerStack) -> bool:
    return any(inner is stack.layers[0] for inner in module.modules())


def _only_in(task: nn.Module, part: nn.Module | None) -> set[int]:
    """The parameters of `part` that stand nowhere else in `task`: tied embeddings run below as well.

    Told by their paths, since PEFT's trainable tokens of tied embeddings share modules and not parameters alone.
    """
    if part is None:
        return set()
    paths = tuple(f"{name}." for name, module in task.named_modules(remove_duplicate=False) if module is part)
    named = task.named_parameters(remove_duplicate=False)
    return _ids(part.parameters()) - _ids(p for name, p in named if not name.startswith(paths))


def _ids(parameters: Iterable[Tensor]) -> set[int]:
    return {id(parameter) for parameter in parameters}


def _kind(name: str, model: nn.Module, stack: LayerStack, entry: int) -> str:
    if "trainable_tokens" in name:
        return "`trainable_token_indices` trains embeddings"
    if ".modules_to_save." in name:
        return "`modules_to_save` trains a module"
    layer = stack.layer_of(name)
    if layer is not None and layer < entry:
        return "Parameters are trained"
    if ".lora_" in name:
        return _adapters(name, model, stack)
    return "Embeddings or other parameters are trained that run, or may run,"


def _adapters(name: str, model: nn.Module, stack: LayerStack) -> str:
    """What to call adapters outside the stack, with the way to be rid of them."""
    tower = next((other.tower for other in other_stacks(model, stack) if in_towers(name, [other.tower])), None)
    if tower is not None:
        return f"Adapters of `{tower.removeprefix(PEFT_PREFIX)}` are trained, which `other_stacks: shed` takes out,"
    module = name.split(".lora_", 1)[0].removeprefix(PEFT_PREFIX)
    return f"Adapters of `{module}` are trained, outside every stack of layers; that module runs, or may run,"


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
