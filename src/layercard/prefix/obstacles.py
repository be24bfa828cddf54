"""Says why the hidden states at the entry cannot be cached exactly: `find_prefix_obstacle`.

Exact means that an example's hidden states at the entry depend on its own tokens alone, never change, and are
all that the layers above read of those below.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from layercard.anatomy.gradient_entry import find_obstacle
from layercard.anatomy.layers import LayerStack
from layercard.anatomy.trainable_below import MODALITIES
from layercard.prefix.trial import tried

READ_ABOVE = {
    "num_kv_shared_layers": "its upper layers read keys and values of lower ones",
    "hidden_size_per_layer_input": "every layer reads an input of its own",
    "altup_num_inputs": "several streams of hidden states run beside each other",
    "output_router_logits": "its loss reads the routers of every layer",
    "router_jitter_noise": "its routers are noisy in training",
    "layerdrop": "layers are dropped at random in training",
}
"""Fields of a configuration that, where set, forbid the cache."""
GROWING_ROPE = {"dynamic", "longrope"}
"""Rotary embeddings whose frequencies depend on the longest row of the batch."""


def find_prefix_obstacle(model: nn.Module, stack: LayerStack, entry: int) -> str | None:
    """Return in one sentence why the prefix below layer `entry` cannot be cached, or None where it can."""
    if entry == 0:
        return "Layer 0 is adapted, so there is no prefix."
    obstacle = find_obstacle(model, stack, entry) or _sharded(model)
    if obstacle is not None:
        return obstacle
    backbone = find_backbone(model, stack)
    if backbone is None:
        return f"No transformers model was found in {type(model).__name__} that takes token ids and runs the layers."
    known = _configured(model, backbone) or _position_bias(stack) or _noise(backbone, stack, entry)
    return known or tried(backbone, stack)


def find_backbone(model: nn.Module, stack: LayerStack) -> Any:
    """Return the innermost transformers model that embeds token ids and runs the layers of `stack`, or None."""
    from transformers import PreTrainedModel

    found = None
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and _embeds(module) and _holds(module, stack.layers[0]):
            found = module
    return found


def _embeds(module: Any) -> bool:
    try:
        embeddings = module.get_input_embeddings()
    except NotImplementedError:
        return False
    return isinstance(embeddings, nn.Module) and hasattr(embeddings, "num_embeddings") and _holds(module, embeddings)


def _holds(module: nn.Module, part: nn.Module) -> bool:
    return any(inner is part for inner in module.modules())


def _sharded(model: nn.Module) -> str | None:
    kinds = {type(module).__name__ for module in model.modules()}
    if any(kind.startswith(("FSDP", "FullySharded")) for kind in kinds):
        return "FSDP gathers weights layer by layer on all ranks at once, and a rank with cached examples runs fewer."
    return None


def _configured(model: Any, backbone: Any) -> str | None:
    kind = type(backbone).__name__
    config, whole = backbone.config.to_dict(), model.config.to_dict()
    if any(modality in whole for modality in MODALITIES):
        return f"{kind} reads images or sound, which are not part of an example's key."
    if whole.get("is_encoder_decoder"):
        return f"{kind} is one of an encoder and a decoder, of which one reads the other."
    for field, reason in READ_ABOVE.items():
        if config.get(field):
            return f"{kind} has `{field}: {config[field]}`: {reason}."
    ropes = [config.get("rope_parameters"), *_values(config.get("rope_parameters"))]
    growing = {rope.get("rope_type") for rope in ropes if isinstance(rope, dict)} & GROWING_ROPE
    if growing:
        return f"{kind} has rotary embeddings of type {growing.pop()!r}, which depend on the longest row of a batch."
    return None


def _values(rope: Any) -> list[Any]:
    """Models with several kinds of layers have one set of rotary parameters for each kind."""
    return list(rope.values()) if isinstance(rope, dict) else []


def _position_bias(stack: LayerStack) -> str | None:
    names = [name for name, _ in stack.layers[0].named_modules() if name.endswith("relative_attention_bias")]
    if names:
        return f"The upper layers read the position bias that layer 0 makes (`{names[0]}`)."
    return None


def _noise(backbone: nn.Module, stack: LayerStack, entry: int) -> str | None:
    above = {id(module) for layer in stack.layers[entry:] for module in layer.modules()}
    for name, module in backbone.named_modules():
        if id(module) in above:
            continue
        for field, rate in _rates(module):
            return f"Dropout is active below the entry: `{name}` has {field} = {rate:g}; set it to 0 in the model's config."
        if "neftune_noise_alpha" in vars(module):
            return "NEFTune adds noise to the embeddings; unset `neftune_noise_alpha`."
    return None


def _rates(module: nn.Module) -> Iterator[tuple[str, float]]:
    """The dropout rates above 0 that a module holds, as a Dropout module or as a number of its own."""
    for field, value in vars(module).items():
        names_dropout = "drop" in field or ("Dropout" in type(module).__name__ and field == "p")
        if names_dropout and isinstance(value, float) and value > 0:
            yield field, value
