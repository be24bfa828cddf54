"""What is known about a placement's quality before training: one line, with its kind of evidence.

The published range is over layer-card.txt's table 4 (accuracies of Llama-2-7B, 32 layers, and Qwen3-8B, 36 layers, each
with 5 layers adapted in four ways, on GSM8K, HellaSwag, SVAMP and MathQA): each 5-layer accuracy over that of all-layer
LoRA, less one. Its ends are Qwen3-8B on GSM8K with the top-resnorm five (75.8150 against 70.3563: +7.8%) and Llama-2-7B
on SVAMP with the same (5.0000 against 39.3333: -87.3%).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from layercard.placement.placement import LayerPlacement

PUBLISHED_RANGE = (0.08, -0.87)
PUBLISHED_WHERE = "5 of 32–36 layers (accuracy against all-layer LoRA; Layer Card paper, table 4)"


def evidence_line(placement: LayerPlacement) -> str | None:
    """Return what is known of the quality of `placement`, with its kind; None where every layer is adapted."""
    if placement.is_all:
        return None
    if placement.evidence == "none":
        best, worst = PUBLISHED_RANGE
        published = f"{best:+.0%} to −{abs(worst):.0%}"
        return f"Quality (none): no evidence about quality; published range at {PUBLISHED_WHERE}: {published}."
    cards = f" of {', '.join(placement.cards)}" if placement.cards else ""
    if placement.expected is not None:
        return f"Quality ({placement.evidence}): {_seen(placement.expected)} on the Layer Card{cards}; unproven on these data."
    what = {
        "measured card": f"a run was measured by the Layer Card{cards}",
        "published": f"published results{cards}",
        "predicted": f"predicted from the Layer Card{cards}",
    }[placement.evidence]
    return f"Quality ({placement.evidence}): {what}."


def _seen(expected: Mapping[str, Any]) -> str:
    share, metric, outcome = (expected.get(name) for name in ("share_kept", "metric", "outcome"))
    kept = (
        "as many layers were adapted" if share is None else f"{share:.0%} of all-layer LoRA's gain in {metric} was kept"
    )
    return f"{kept} by `{outcome}`"
