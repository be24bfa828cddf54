"""What a run says of quality when training begins: what the trial found, and what to do where too little is kept."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from layercard.anatomy.layers import describe
from layercard.placement.placement import LayerPlacement
from layercard.report.lines import say

log = logging.getLogger("layercard")

NOT_WORTH_SAYING = ("`guard` is off.", "which is all-layer LoRA itself.")
"""Ends of reasons that a person knows already."""


def say_quality(quality: Mapping[str, Any], placement: LayerPlacement, *, shown: bool) -> None:
    """Say it on standard error where `shown`, and warn in the log where too little is kept and training goes on."""
    if shown:
        say(quality_lines(quality, placement))
        if quality["reaction"] == "warned":
            log.warning("%s", quality_loss(quality, placement))


def quality_lines(quality: Mapping[str, Any], placement: LayerPlacement) -> list[str]:
    """Return what the trial found, a line each; nothing where nothing was to be found."""
    lines = []
    if quality["share_kept"] is not None and quality["interval"] is not None:
        lines.append(
            f"Trial of {quality['steps']} steps, {_on(quality)}: {describe(placement.layers, placement.num_layers)} kept "
            f"{quality['share_in_trial']:.0%} of all-layer LoRA's gain in held-out loss, which predicts {_share(quality)} at "
            "the end of the run."
        )
    elif quality["kind"] == "tried":
        lines.extend(_of_schedule(quality))
    elif not str(quality["reason"]).endswith(NOT_WORTH_SAYING):
        lines.append(f"Quality unknown: {quality['reason']}")
    if quality["reaction"] in ("all_layers", "widened"):
        tried = "; ".join(_tried(entry) for entry in quality["tried"])
        lines.append(f"The guard adapts {describe(placement.layers, placement.num_layers)} instead. Tried: {tried}.")
    hint = quality["learning_rate_hint"]
    if hint is not None and quality["reaction"] not in ("all_layers", "widened"):
        lines.append(_rate(quality, hint))
    return lines


def quality_loss(quality: Mapping[str, Any], placement: LayerPlacement) -> str:
    """Return what is wrong with the placement's quality, and what to do, for a warning or an error."""
    found = (
        "diverged" if quality["share_kept"] is None else f"promised to keep {_share(quality)} of all-layer LoRA's gain"
    )
    advice = (
        "Lower the learning rate, or train without `schedule`."
        if quality["rises"]
        else "Adapt more layers, raise the learning rate or the rank, or set `on_quality_loss` to `all_layers` or `widen`."
    )
    return (
        f"In a trial of {quality['steps']} steps, {_on(quality)}, {describe(placement.layers, placement.num_layers)} {found} "
        f"in held-out loss; `quality_threshold` is {quality['threshold']:.0%}. {advice}"
    )


def _of_schedule(quality: Mapping[str, Any]) -> list[str]:
    """What the trial of a schedule measured, and that nothing follows from it for the run's end."""
    low, high = quality["interval_in_trial"]
    kept = f"{quality['share_in_trial']:.0%} ({low:.0%} to {high:.0%})"
    return [
        f"Trial of {quality['steps']} steps with the schedule's rises in them, {_on(quality)}.",
        f"After it {kept} of all-layer LoRA's gain in held-out loss was kept.",
        f"The run's end is not predicted. {quality['reason']}",
    ]


def _share(quality: Mapping[str, Any]) -> str:
    low, high = quality["interval"]
    return f"{quality['share_kept']:.0%} ({low:.0%} to {high:.0%})"


def _on(quality: Mapping[str, Any]) -> str:
    where = (
        "the eval set" if quality["heldout_from"] == "eval_dataset" else "the training set, not trained on in the trial"
    )
    return f"on {quality['examples']} examples of {where}"


def _tried(entry: Mapping[str, Any]) -> str:
    share = "none" if entry["share_kept"] is None else f"{entry['share_kept']:.0%}"
    return f"layers {entry['layers']} for {share}"


def _rate(quality: Mapping[str, Any], hint: Mapping[str, Any]) -> str:
    once, twice = quality["heldout_loss"]["placed"], quality["heldout_loss"]["placed_2x"]
    losses = " and ".join("a loss that is not finite" if loss is None else f"{loss:.4f}" for loss in (once, twice))
    return (
        f"At 1x and 2x the learning rate the placed layers came to {losses}: {hint['better']:g}x "
        f"({hint['learning_rate']:g}) did better in the trial, "
        "and so short a one favours the higher. Nothing was changed."
    )
