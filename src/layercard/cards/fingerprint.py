"""Tells one base model from another: what stands under `model` in a Layer Card.

The digest covers the kind of model, its depth and widths, and the first numbers of the input embedding and of every
tensor in the first, middle and last layer, rounded to bfloat16: some hundred kilobytes at most, whatever the model's
size. So a model has one digest with or without adapters, with any head, padded vocabulary, in float32 or bfloat16.
It does not see an edit of weights elsewhere. Weights loaded in 4 or 8 bit are digested as they are packed, so the
digest of a quantized model differs from that of the model it was made from; the same quantization gives the same.
float16 rounds differently from bfloat16 and may differ too.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraModel
from torch import Tensor, nn
from transformers import PreTrainedConfig

from layercard.anatomy.adapters import BASE_PREFIX, base_modules
from layercard.anatomy.layers import LayerStack, find_layers
from layercard.anatomy.packed import plain_tensors
from layercard.errors import ModelError

SAMPLED = 1024
"""Numbers read of each tensor, from its start."""
WIDTHS = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
SIZES = (*WIDTHS, "vocab_size", "num_experts", "num_local_experts")
"""What is recorded where the model's configuration has it; the vocabulary may be padded and is not digested."""


def model_fingerprint(
    model: nn.Module,
    *,
    stack: LayerStack | None = None,
    model_id: str | None = None,
    revision: str | None = None,
    gguf: str | None = None,
) -> dict[str, Any]:
    """Return what a Layer Card holds under `model`, of a transformers model with or without PEFT adapters on it.

    `model_id` and `revision` default to what the configuration says (of a local folder, its name alone); `gguf` names
    the quantization of the GGUF file that the weights came from, which converted weights no longer show. `stack` gives
    the layers where a plugin located them. Raises `ModelError` where weights are not there (meta device, ZeRO-3), and
    for a module without a transformers configuration.
    """
    base, modules = _bare(model)
    config = _config(base)
    text = config.get_text_config()
    layers = _layer_names(base, stack)
    tensors = dict(_named_tensors(modules))
    sizes = {name: value for name in SIZES if isinstance(value := size_of(text, name), int)}
    return {
        "id": model_id or public_id(config.name_or_path) or type(base).__name__,
        "revision": revision or vars(config).get("_commit_hash"),
        "num_layers": len(layers),
        "architecture": type(base).__name__,
        "fingerprint": _digest(text.model_type, sizes, layers, _embedding(base, tensors), tensors),
        "sizes": sizes,
        "parameters": sum(_numel(tensor) for tensor in {id(t): t for t in tensors.values()}.values()),
        "dtype": str(_dtype(layers, tensors)).removeprefix("torch."),
        "quantization": _quantization(config),
        "gguf": gguf,
    }


def size_of(config: Any, name: str) -> Any:
    """Return a field of a configuration; None where it has none, or one for each layer, which transformers refuses to read."""
    per_layer = getattr(vars(config).get("_heterogeneity_spec"), "per_layer_attributes", ())
    return None if name in per_layer else getattr(config, name, None)


def _bare(model: nn.Module) -> tuple[Any, dict[str, nn.Module]]:
    """The base model and its modules by the names they have there, whatever PEFT added."""
    if not isinstance(model, PeftModel):
        return model, dict(model.named_modules())
    if not isinstance(model.base_model, LoraModel):
        raise ModelError(
            f"The model carries {type(model.base_model).__name__} adapters. Layer Cards are about LoRA; give the base "
            "model or one with LoRA adapters."
        )
    return model.base_model.model, base_modules(model)


def _config(base: nn.Module) -> Any:
    config = vars(base).get("config")
    if not isinstance(config, PreTrainedConfig):
        raise ModelError(f"{type(base).__name__} has no transformers configuration, so it cannot be told from others.")
    return config


def _layer_names(base: nn.Module, stack: LayerStack | None) -> list[str]:
    if stack is None:
        found = find_layers(base)
        return [found.name(i) for i in range(len(found))]
    return [stack.name(i).removeprefix(BASE_PREFIX) for i in range(len(stack))]


def _named_tensors(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, Tensor]]:
    for name, module in modules.items():
        for own, tensor in module.named_parameters(recurse=False):
            if tensor.is_meta or tensor.numel() == 0:
                raise ModelError(
                    f"The weights of `{name}` are not in this process (meta device or sharded), so the model cannot be "
                    "told from others. Load it whole on one device."
                )
            yield f"{name}.{own}", tensor


def _digest(
    kind: str, sizes: Mapping[str, int], names: list[str], first: Tensor | None, tensors: Mapping[str, Tensor]
) -> str:
    shape = [kind, len(names), *(f"{name}={sizes[name]}" for name in WIDTHS if name in sizes)]
    seen = hashlib.sha256(repr(shape).encode())
    if first is not None:
        seen.update(f"embedding {tuple(first.shape[1:])}".encode() + _start(first))
    for layer in sorted({0, len(names) // 2, len(names) - 1}):
        prefix = f"{names[layer]}."
        for name in sorted(name for name in tensors if name.startswith(prefix)):
            tensor = tensors[name]
            seen.update(f"{layer} {name.removeprefix(prefix)} {tuple(tensor.shape)}".encode() + _start(tensor))
    return seen.hexdigest()


def _start(tensor: Tensor) -> bytes:
    return b"".join(_first_numbers(plain) for plain in plain_tensors(tensor))


def _first_numbers(tensor: Tensor) -> bytes:
    values = tensor.detach().flatten()[:SAMPLED].cpu()
    if values.is_floating_point() and values.itemsize > 1:
        values = values.to(torch.bfloat16)
    return values.contiguous().view(torch.uint8).numpy().tobytes()


def _embedding(base: Any, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """The matrix of the input embedding; None where inputs come in otherwise, as pixels and sounds do."""
    try:
        module = base.get_input_embeddings()
    except NotImplementedError:
        return None
    name = next((name for name, other in base.named_modules() if other is module), None)
    return tensors.get(f"{name}.weight")


def _numel(tensor: Tensor) -> int:
    """How many weights it holds; 4-bit ones are packed two to a byte."""
    return math.prod(vars(tensor)["quant_state"].shape) if "quant_state" in vars(tensor) else tensor.numel()


def _dtype(layers: list[str], tensors: Mapping[str, Tensor]) -> torch.dtype:
    """What most weights of the layers are computed in."""
    counts: Counter[torch.dtype] = Counter()
    prefixes = tuple(f"{name}." for name in layers)
    for name, tensor in tensors.items():
        dtype = vars(tensor)["quant_state"].dtype if "quant_state" in vars(tensor) else tensor.dtype
        if name.startswith(prefixes) and dtype.is_floating_point:
            counts[dtype] += _numel(tensor)
    return counts.most_common(1)[0][0] if counts else next(iter(tensors.values())).dtype


def _quantization(config: Any) -> str | None:
    """Such as `bitsandbytes 4-bit nf4`; None where the weights are not quantized."""
    given = vars(config).get("quantization_config")
    if given is None:
        return None
    values = given if isinstance(given, dict) else given.to_dict()
    bits = values.get("bits") or (4 if values.get("load_in_4bit") else 8 if values.get("load_in_8bit") else None)
    kind = values.get("bnb_4bit_quant_type") if values.get("load_in_4bit") else None
    method = values["quant_method"]
    parts = (getattr(method, "value", method), f"{bits}-bit" if bits else None, kind)
    return " ".join(str(part) for part in parts if part)


def public_id(name: str) -> str:
    """Return a model's or data set's name without the folder it was loaded from: a Hub id, or a folder's own name."""
    local = Path(name).expanduser()
    for part in local.parts:
        if part.startswith("models--"):  # a snapshot in the Hub's cache
            return part.removeprefix("models--").replace("--", "/")
    is_path = re.match(r"[./~\\]|[A-Za-z]:[/\\]", name) or local.exists()
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1] if is_path else name
