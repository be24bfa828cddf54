"""What is said where a probe cannot use what it saw: a loss that is not made of examples, targets that nothing reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from layercard.anatomy.layers import LayerStack, describe
from layercard.anatomy.targets import TargetModule, packed_kinds
from layercard.errors import ProbeError, one_of

SLACK = 0.05
"""How far a batch's loss may lie outside the range of its examples' losses, relative to the largest."""
FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a model, a collator or a loss of a user's own raises on rows that it cannot take."""


def is_made_of(whole: Tensor, parts: Sequence[Tensor]) -> bool:
    """Whether the loss of a batch, `whole`, can be an average of its examples' losses, whatever their weights, or their sum.

    An average of label terms times the number of rows passes too. A loss that compares examples with each other is near 0
    for one alone, and does not.
    """
    total, each = float(whole), [float(part) for part in parts]
    lowest, highest = min(each), max(each)
    slack = SLACK * max(abs(lowest), abs(highest))
    return min(lowest, len(each) * lowest) - slack <= total <= max(highest, len(each) * highest) + slack


def check_parts(whole: Tensor, parts: Sequence[Tensor]) -> None:
    """Raise `ProbeError` where no example has a gradient of its own."""
    if is_made_of(whole, parts):
        return
    each = [float(part) for part in parts]
    raise ProbeError(
        f"The loss of {len(each)} examples together is {float(whole):.4g}, and alone they have {min(each):.4g} to "
        f"{max(each):.4g}: it is no average of examples (a contrastive loss compares them with each other), so no example has "
        "a gradient of its own. Choose layers by depth or by hand, such as `lora_layers: uniform`."
    )


def failure(batch: Mapping[str, Any], error: BaseException) -> str:
    """Return what to say where the model or a user's own loss fails on a batch."""
    held = ", ".join(f"`{k}` {list(v.shape)}" for k, v in batch.items() if isinstance(v, Tensor))
    said = " ".join(str(error).split())[:300] or "no reason given"
    return (
        f"The loss of a probe batch cannot be computed ({type(error).__name__}: {said}). The batch holds {held}. Training on it "
        "fails alike, unless the loss needs whole batches: check that labels fit the model (`num_labels`, their type), or "
        "choose layers by depth or by hand."
    )


def _suspects(stack: LayerStack) -> str:
    kinds = packed_kinds(stack)
    return f" (such as {one_of(kinds)})" if kinds else ""


def no_dependence(stack: LayerStack) -> str:
    """Return what to say where the loss does not depend on any target."""
    return (
        "The loss does not depend on any target module that the probe can see. Kernels that bypass the modules (fused LoRA "
        f"kernels) must be off while probing, and the modules of the base{_suspects(stack)} must pass gradients on to what they "
        "read; otherwise training fails alike."
    )


def what_was_missed(
    stack: LayerStack,
    targets: Sequence[TargetModule],
    ran: frozenset[tuple[int, str]],
    reached: frozenset[tuple[int, str]],
) -> list[str]:
    """Return notes on targets that add nothing to any score, by name.

    `ran` and `reached` hold the (layer, name) of targets that ran and that a gradient reached. Raises `ProbeError` where no
    gradient reached any target of a layer that ran.
    """
    dark = sorted({layer for layer, _ in ran} - {layer for layer, _ in reached})
    if dark:
        raise ProbeError(
            f"No gradient reached the target modules of {describe(dark, len(stack))}. A module above them{_suspects(stack)} "
            "passes none on to what it reads, so training cannot adapt them either. Load the base model in a form that gradients "
            "flow through, or adapt the layers above alone."
        )
    named = {target.name for target in targets}
    idle = sorted(named - {name for _, name in ran})
    apart = sorted(named - {name for _, name in reached} - set(idle))
    notes = [f"left out, since no example runs them: {', '.join(idle)}"] if idle else []
    return notes + ([f"left out, since the loss does not depend on them: {', '.join(apart)}"] if apart else [])
