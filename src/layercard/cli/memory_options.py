"""The options of `plan` that say what its prediction of memory is for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import click

from layercard.cli.options import Function
from layercard.sizes import parse_size

OPTIMIZERS = ("adamw", "adamw-8bit", "sgd")


class Size(click.ParamType):
    """A size in bytes with its unit."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> int:
        """Return the bytes; fail as click does where it is no size."""
        size = value if isinstance(value, int) else parse_size(str(value))
        if size is None:
            self.fail(f"{value!r} is no size. Give a number with its unit, such as `24GiB` or `80GB`.", param, context)
        return size


@dataclass(frozen=True)
class MemoryAsked:
    """What memory is predicted for."""

    device: int | None
    """Bytes of the device, where one was named."""
    rows: int
    tokens: int | None
    """None: as many as the command reads."""
    rank: int
    optimizer: str
    bf16: bool
    tiled_head: bool
    dtype: str | None
    """None: as saved."""
    bits: Literal[4, 8] | None


def memory_options(function: Function) -> Function:
    """Add the options; the decorated function is given them by `memory_asked`."""
    for decorator in (
        click.option(
            "--loss-head",
            type=click.Choice(["tiled", "whole"]),
            default="tiled",
            show_default=True,
            help="`tiled` as TRL's and Liger's losses, `whole` where all logits are held. For memory alone.",
        ),
        click.option(
            "--bf16/--no-bf16", default=True, show_default=True, help="Mixed precision, as in TRL. For memory alone."
        ),
        click.option(
            "--optimizer", type=click.Choice(OPTIMIZERS), default="adamw", show_default=True, help="For memory alone."
        ),
        click.option(
            "--lora-rank", type=click.IntRange(min=1), default=16, show_default=True, help="For memory alone."
        ),
        click.option("--load-in-8bit", is_flag=True, help="8-bit weights of the run. For memory alone."),
        click.option(
            "--batch-size",
            type=click.IntRange(min=1),
            default=8,
            show_default=True,
            help="Rows of a training step on one device. For memory alone.",
        ),
        click.option("--memory", type=Size(), metavar="SIZE", help="Of a device, such as `24GiB`: what fits into it?"),
    ):
        function = decorator(function)
    return function


def memory_asked(values: dict[str, Any]) -> MemoryAsked:
    """Take the options of `memory_options` out of `values` and return what they ask for."""
    eight, four, dtype = values.pop("load_in_8bit"), values["load_in_4bit"], values["dtype"]
    if eight and four:
        raise click.UsageError("`--load-in-8bit` and `--load-in-4bit` were both given. Give one.")
    return MemoryAsked(
        device=values.pop("memory"),
        rows=values.pop("batch_size"),
        tokens=values["max_length"],
        rank=values.pop("lora_rank"),
        optimizer=values.pop("optimizer"),
        bf16=values.pop("bf16"),
        tiled_head=values.pop("loss_head") == "tiled",
        dtype=None if dtype in ("auto", "saved") else dtype,
        bits=4 if four else 8 if eight else None,
    )
