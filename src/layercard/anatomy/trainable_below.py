"""Which trainable parameters run below a layer: what would lose its gradient if backpropagation ended there.

Offers `trainable_below` and `obstacle_below`, which says it in a sentence. What lies in the layers is told by
the stack; what lies outside the backbone (a language modelling head, a classifier) runs above; the rest,
embeddings and their like, is taken to run below, since a forward order cannot be read from module names.
"""

from __future__ import annotations

from torch import nn

from layercard.anatomy.layers import LayerStack


def trainable_below(model: nn.Module, stack: LayerStack, entry: int) -> list[str]:
    """Return the names of parameters with `requires_grad` that run, or may run, below layer `entry`."""
    above = {id(p) for layer in stack.layers[entry:] for p in layer.parameters()} | _head_parameters(model)
    return [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in above]


def obstacle_below(model: nn.Module, stack: LayerStack, entry: int) -> str | None:
    """Return in one sentence what is trained below layer `entry`, or None."""
    names = trainable_below(model, stack, entry)
    if not names:
        return None
    return f"{_kind(names[0], stack, entry)} below layer {entry} (`{names[0]}`{_more(names)})."


def _head_parameters(model: nn.Module) -> set[int]:
    """Parameters of the task's head: in the transformers model, outside its backbone, not tied into it."""
    from transformers import PreTrainedModel

    task = next((m for m in model.modules() if isinstance(m, PreTrainedModel)), None)
    if task is None or task.base_model is task:
        return set()
    return {id(p) for p in task.parameters()} - {id(p) for p in task.base_model.parameters()}


def _kind(name: str, stack: LayerStack, entry: int) -> str:
    if "trainable_tokens" in name:
        return "`trainable_token_indices` trains embeddings"
    if ".modules_to_save." in name:
        return "`modules_to_save` trains a module"
    layer = stack.layer_of(name)
    if layer is not None and layer < entry:
        return "Parameters are trained"
    return "Embeddings or other parameters are trained that run, or may run,"


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
