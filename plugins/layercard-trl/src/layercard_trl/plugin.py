"""The hooks through which layercard-trl joins layercard. Imports TRL only when a trainer or a command asks for it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from layercard.hookspecs import hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import click

    from layercard.doctor.check import Check
    from layercard.hosts.protocol import Host
    from layercard.pipeline.placed_run import PlacedRun


@hookimpl
def locate_host(trainer: Any) -> Host | None:
    """Answer for TRL's trainers: supported ones with a host, others with an error; None for all other trainers."""
    if "trl" not in sys.modules:  # a TRL trainer cannot exist before its package is imported
        return None
    from layercard_trl.host import locate

    return locate(trainer)


@hookimpl
def tokenize_examples(tokenizer: Any, examples: list[dict[str, Any]]) -> list[dict[str, list[int]]] | None:
    """Tokenize as `SFTTrainer` prepares its dataset; without an end-of-sequence token, which it needs, answer nothing."""
    from layercard.data.chat import text_tokenizer

    if text_tokenizer(tokenizer).eos_token is None:
        return None
    from layercard_trl.tokens import prepared

    return prepared(tokenizer, examples)


@hookimpl
def register_commands(cli: click.Group) -> None:
    """Add `layercard trl-sft` and `layercard demo`."""
    from layercard_trl.commands import demo, trl_sft

    cli.add_command(trl_sft)
    cli.add_command(demo)


@hookimpl
def diagnose(folder: Path, place: Callable[..., PlacedRun]) -> Iterator[Check]:
    """Place and train a real `SFTTrainer` over the toy."""
    from layercard_trl.diagnosis import check_sft

    yield check_sft(folder, place)
