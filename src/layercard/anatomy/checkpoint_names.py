"""What transformers calls checkpointing: `activation_checkpointing` since 5.23, `gradient_checkpointing` before and until 6.

Modules carry the flag `gradient_checkpointing` under both. Offers `is_checkpointing` and `checkpointing_arguments`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any

NEW, OLD = "activation_checkpointing", "gradient_checkpointing"


def is_checkpointing(args: Any) -> bool:
    """Whether a trainer's arguments ask for checkpointing; the new name decides where both are there."""
    values = vars(args)
    return bool(values[NEW] if NEW in values else values.get(OLD))


def checkpointing_arguments(on: bool, kwargs: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the keywords of `TrainingArguments` that switch checkpointing on with `kwargs`, or off."""
    name = current_name()
    return {name: on, f"{name}_kwargs": dict(kwargs) if on and kwargs is not None else None}


@cache
def current_name() -> str:
    """Return the name that the installed transformers takes without a warning."""
    from transformers import TrainingArguments

    return NEW if any(field.name == NEW for field in fields(TrainingArguments)) else OLD
