"""The built-in scorers, strategies, cards, layers, hosts and tokens, registered through the hooks that plugins use."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from layercard.hookspecs import hookimpl

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from layercard.anatomy.layers import LayerStack
    from layercard.hosts.protocol import Host


@hookimpl
def register_scorers(register: Callable[[Any], None]) -> None:
    """Register resnorm and its variants, activation, CKA, gradient norm, effective rank and set gain."""
    from layercard.scores import activation, cka, effective_rank, gradient_norm, resnorm, set_gain

    for module in (resnorm, activation, cka, gradient_norm, effective_rank, set_gain):
        for scorer in module.SCORERS:
            register(scorer)


@hookimpl
def register_strategies(register: Callable[[Any], None]) -> None:
    """Register the strategies by score, by depth, `random`, `budget` and `set_gain`."""
    from layercard.placement import budget, set_gain, strategies

    for module in (strategies, budget, set_gain):
        for strategy in module.STRATEGIES:
            register(strategy)


@hookimpl
def provide_cards() -> list[Path]:
    """Provide the cards that are shipped with layercard."""
    from layercard.cards.library import shipped_dir

    return [shipped_dir()]


@hookimpl(trylast=True)
def locate_decoder_layers(model: nn.Module) -> LayerStack:
    """Search the model for its one stack of layers."""
    from layercard.anatomy.layers import find_layers

    return find_layers(model)


@hookimpl(trylast=True)
def locate_host(trainer: Any) -> Host | None:
    """Answer for a plain `transformers.Trainer`."""
    from layercard.hosts.plain import PlainHost

    return PlainHost.answer(trainer)


@hookimpl(trylast=True)
def tokenize_examples(tokenizer: Any, examples: list[dict[str, Any]]) -> list[dict[str, list[int]]]:
    """Tokenize by the tokenizer's own chat template."""
    from layercard.data.chat import tokenize_by_template

    return tokenize_by_template(tokenizer, examples)
