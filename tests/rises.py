"""Trainings whose gradient entry rises on the way: adapters below it stop learning, with or without the prefix cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from adapted import lora_config, with_adapters
from caching import LIMIT, NO_DROPOUT
from layercard.anatomy.freezing import frozen_below
from layercard.anatomy.gradient_entry import GradientEntry
from layercard.anatomy.layers import find_layers
from layercard.prefix.cache import PrefixCache, PrefixCacheUse
from layercard.prefix.earlier import EarlierStates
from tiny import tiny_model

LAYERS = 6


def risen(family: str = "llama", *, dropout: float = 0.0, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """Return a model with adapters that already change it in every layer but the lowest."""
    base = tiny_model(family, num_layers=LAYERS, dtype=dtype, **(NO_DROPOUT.get(family, {}) | changes))
    base.config.use_cache = False
    model = with_adapters(
        base, lora_config(family, layers_to_transform=list(range(1, LAYERS)), lora_dropout=dropout)
    ).train()
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator).to(dtype))
    return model


@contextmanager
def phase(
    model: Any, entry: int, earlier: EarlierStates | None = None, *, limit: int = LIMIT, directory: Path | None = None
) -> Iterator[PrefixCache]:
    """The model as it trains from layer `entry` up, with what the phase before handed over."""
    stack = find_layers(model)
    with ExitStack() as undo:
        undo.enter_context(frozen_below(stack, entry))
        undo.enter_context(GradientEntry(model, stack, entry))
        yield undo.enter_context(PrefixCache(model, stack, entry, limit, directory, earlier=earlier))


def train_rising(
    model: Any,
    batches: Callable[[int], Any],
    entries: list[int],
    *,
    limit: int | None = LIMIT,
    directory: Path | None = None,
    after_each: Callable[[PrefixCacheUse], None] = lambda use: None,
) -> tuple[list[torch.Tensor], list[PrefixCacheUse]]:
    """Weights after `batches(n)` in phase n, which begins at `entries[n]`, and what each phase's cache did.

    Without a cache (`limit` None) the lower layers are frozen by hand, and backpropagation ends where autograd ends it.
    """
    stack = find_layers(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    uses, earlier = [], None
    for number, entry in enumerate(entries):
        with ExitStack() as undo:
            cache = None
            if limit is None:
                for layer in stack.layers[:entry]:
                    layer.requires_grad_(False)
            else:
                cache = undo.enter_context(phase(model, entry, earlier, limit=limit, directory=directory))
            for batch in batches(number):
                model(**batch).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                if cache is not None:
                    after_each(cache.use)
            if cache is not None:
                uses.append(cache.use)
                earlier = cache.hand_over() if number + 1 < len(entries) else None
    return [p.detach().clone() for p in trained], uses
