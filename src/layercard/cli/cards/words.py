"""How the commands about Layer Cards say things: the best set of layers of a card, shares, ratios, refused files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from layercard.cli.output import Output
from layercard.report.words import times

if TYPE_CHECKING:
    from layercard.cards.card import LayerCard

UNKNOWN = "–"
LEGEND = (
    "kept: share of all-layer LoRA's gain over the untuned model; with *, share of its metric.\n"
    "speed, memory: beside all-layer LoRA's."
)


def summary(card: LayerCard) -> dict[str, Any]:
    """Return what `cards list --json` says of a card."""
    model, dataset = card.document["model"], card.document["dataset"]
    return {
        "key": card.key,
        "model": model["id"],
        "num_layers": card.num_layers,
        "dataset": dataset["id"],
        "kind": card.document["provenance"]["kind"],
        "status": card.status,
        "quick": bool(card.document.get("quick")),
        "main_metric": card.main_metric,
        "best": None if card.best is None else achieved(card, card.best),
        "source": card.source,
    }


def achieved(card: LayerCard, name: str) -> dict[str, Any]:
    """Return what one outcome reached and cost, as far as the card says."""
    outcome = card.outcomes[name]
    metric = outcome.metrics.get(card.main_metric)
    return {
        "name": name,
        "kind": outcome.kind,
        "layers": None if outcome.layers is None else list(outcome.layers),
        "count": outcome.count,
        "value": None if metric is None else metric.value,
        "gain": card.gain(name),
        "share_kept": card.share_kept(name),
        "relative_to_all_layers": card.relative_to_all_layers(name),
        "step_seconds_ratio": outcome.step_seconds_ratio,
        "peak_memory_ratio": outcome.peak_memory_ratio,
    }


def kept(found: Mapping[str, Any]) -> str:
    """Return the share of all-layer LoRA's gain that was kept, or else, with *, the metric over all-layer LoRA's."""
    if found["share_kept"] is not None:
        return f"{found['share_kept']:.0%}"
    return UNKNOWN if found["relative_to_all_layers"] is None else f"{found['relative_to_all_layers']:.0%}*"


def speed(step_ratio: float | None) -> str:
    """Return how fast a step is beside all-layer LoRA's, whose time it takes `step_ratio` of."""
    return UNKNOWN if step_ratio is None else times(1 / step_ratio)


def share(value: float | None) -> str:
    """Return a share of all-layer LoRA's."""
    return UNKNOWN if value is None else f"{value:.0%}"


def number(value: float | None) -> str:
    """Return a number in four digits."""
    return UNKNOWN if value is None else f"{value:.4g}"


def say_refused(output: Output, rejected: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """Name every refused card, and return what `--json` says of them."""
    listed = [{"source": source, "reason": reason} for source, reason in rejected]
    for row in listed:
        output.say(f"Refused: {row['reason']}")
    return listed
