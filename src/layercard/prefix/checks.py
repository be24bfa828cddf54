"""What the prefix cache proves by running the model: that documents are separated, and that both ways agree."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from layercard.anatomy.layers import LayerStack
from layercard.prefix.calls import BackboneCall
from layercard.prefix.keys import Example
from layercard.prefix.skipping import PrefixSwitch

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""How much of their norm cached hidden states may differ from computed ones: rounding under another batch, no more."""


def precision(device: torch.device) -> torch.dtype | None:
    """Return what autocast computes in on `device`, or None where it is off; hidden states depend on it."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


def one_token(backbone: Any) -> dict[str, Tensor]:
    """Return the shortest call of the backbone."""
    device = backbone.get_input_embeddings().weight.device
    return {"input_ids": torch.zeros(1, 1, dtype=torch.long, device=device)}


@contextmanager
def training_mode(backbone: nn.Module) -> Iterator[None]:
    """Run the block in training mode; every module's own mode is put back."""
    modes = [(module, module.training) for module in backbone.modules()]
    backbone.train()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def only_rotary(backbone: nn.Module, stack: LayerStack) -> bool:
    """Whether the model knows positions by rotary embeddings alone, so that only their differences matter."""
    inside = {id(module) for layer in stack.layers for module in layer.modules()}
    outside = [module for module in backbone.modules() if id(module) not in inside]
    tables = sum(isinstance(module, nn.Embedding) for module in outside)
    rotary = any("RotaryEmbedding" in type(module).__name__ for module in outside)
    chunked = "chunked" in str(backbone.config.to_dict().get("layer_types"))  # type: ignore[operator, union-attr]
    return rotary and tables == 1 and not chunked


def separates_documents(switch: PrefixSwitch, call: BackboneCall) -> bool:
    """Whether no document of a packed row sees another: every second one is changed, and the rest stays as it was."""
    examples = call.tokens().examples(split_documents=True, shift_positions=False, context=b"")
    ids = call.named["input_ids"]
    changed = torch.zeros_like(ids, dtype=torch.bool)
    for example in examples[::2]:
        changed[example.row, example.span] = True
    before = switch.compute(call.rows(list(range(len(ids)))))
    after = switch.compute(call.with_other_tokens(changed))
    kept = [(before[e.row, e.span], after[e.row, e.span]) for e in examples[1::2]]
    return bool(kept) and all(_difference([a], [b]) <= TOLERANCE[a.dtype] for a, b in kept)


def difference_both_ways(
    backbone: nn.Module, switch: PrefixSwitch, call: BackboneCall, hidden: Tensor, examples: list[Example]
) -> float:
    """Return how far apart the given and the computed prefix are, over the norm of the latter.

    Compared are the hidden states at the entry and the backbone's last hidden state, at the examples' own
    tokens: what upper layers may read of the prefix by another way shows in the second.
    """
    rows = call.rows(list(range(len(hidden))))
    last_given = _last_hidden(backbone, switch, rows, hidden)  # first, before the prefix leaves anything behind
    last_computed = _last_hidden(backbone, switch, rows, None)
    computed = switch.compute(rows)
    pairs = ((hidden, computed), (last_given, last_computed))
    return max(
        _difference([a[e.row, e.span] for e in examples], [b[e.row, e.span] for e in examples]) for a, b in pairs
    )


def _last_hidden(backbone: nn.Module, switch: PrefixSwitch, call: dict[str, Any], hidden: Tensor | None) -> Tensor:
    """Run the whole backbone; dropout above the entry draws the same numbers each time, and none from outside."""
    devices = [hidden.device] if hidden is not None and hidden.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices), switch.giving(hidden), without_checkpointing(backbone):
        torch.manual_seed(0)
        last: Tensor = backbone(**call)[0]
    return last


@contextmanager
def without_checkpointing(backbone: nn.Module) -> Iterator[None]:
    """Run the block without checkpointing: there is no backward, and reentrant checkpointing would complain."""
    flagged: list[Any] = [m for m in backbone.modules() if vars(m).get("gradient_checkpointing")]
    for module in flagged:
        module.gradient_checkpointing = False
    try:
        yield
    finally:
        for module in flagged:
            module.gradient_checkpointing = True


def _difference(found: list[Tensor], expected: list[Tensor]) -> float:
    norm = sum(float(b.double().square().sum()) for b in expected) ** 0.5
    apart = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(found, expected, strict=True)) ** 0.5
    return apart / norm if norm > 0 else apart
