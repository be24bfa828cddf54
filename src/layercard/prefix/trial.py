"""Tries on one short row whether a backbone's prefix can be replaced by its output at all: `tried`.

What no configuration tells: that each layer runs once in a pass, on hidden states laid out (rows, tokens, width), and that
token ids are all that the backbone needs.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from layercard.anatomy.backward_watch import hidden_of
from layercard.anatomy.layers import LayerStack
from layercard.prefix.checks import training_mode, without_checkpointing

TOKENS = 3
FAILURES = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a backbone raises that needs more than token ids."""


def tried(backbone: Any, stack: LayerStack) -> str | None:
    """Return in a sentence what one forward pass over three tokens shows to stand against the cache, or None."""
    calls: Counter[int] = Counter()
    shapes: set[tuple[int, ...]] = set()
    with ExitStack() as undo:
        for index, layer in enumerate(stack.layers):
            undo.callback(layer.register_forward_pre_hook(_noting(index, calls, shapes), with_kwargs=True).remove)
        try:
            _run(backbone, undo)
        except FAILURES as error:
            said = " ".join(str(error).split())[:200]
            return f"{type(backbone).__name__} cannot be run on token ids alone ({type(error).__name__}: {said})."
    kind = type(backbone).__name__
    if max(calls.values(), default=0) > 1:
        return f"{kind} runs its layers several times in one pass, so that the prefix reads what the layers above returned."
    if len(calls) < len(stack):
        return f"{kind} did not call layer {min(set(range(len(stack))) - set(calls))} in a pass over {TOKENS} tokens."
    if any(shape != (1, TOKENS) for shape in shapes):
        return f"The layers of {kind} read hidden states that are not laid out as (rows, tokens, width)."
    return None


def _run(backbone: Any, undo: ExitStack) -> None:
    """A pass in training mode, since evaluation repacks bitsandbytes' 4-bit weights; random numbers are put back."""
    device = backbone.get_input_embeddings().weight.device
    undo.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
    undo.enter_context(training_mode(backbone))
    undo.enter_context(without_checkpointing(backbone))
    with torch.no_grad():
        backbone(input_ids=torch.zeros(1, TOKENS, dtype=torch.long, device=device))


def _noting(index: int, calls: Counter[int], shapes: set[tuple[int, ...]]) -> Any:
    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls[index] += 1
        hidden = hidden_of(args, kwargs)
        if isinstance(hidden, Tensor):
            shapes.add(tuple(hidden.shape[:-1]))

    return note
