"""From settings, a depth and perhaps scores to a `LayerPlacement`.

`needed_score` says which score must be probed before `choose_placement` can choose; most choices need none. Here
settings meet the depth of the model: what does not fit is a `SettingsError` that names the depth. How a strategy picks
is its own business (`strategies.py`); its answer is checked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from layercard.anatomy.words import describe, how_many
from layercard.errors import ProbeError, SettingsError
from layercard.placement.auto import QUALITY_UNPROVEN, RULES, auto_request, choose_auto
from layercard.placement.budget import check_budget, check_memory, share_held
from layercard.placement.placement import LayerPlacement, without_adapters
from layercard.placement.strategies import PeakBytes, StepRatio, Strategy, StrategyRequest, checked
from layercard.registry import Registry
from layercard.scores.base import LayerScores
from layercard.scores.set_gain import NAME as SET_GAIN
from layercard.settings import PlacementSettings
from layercard.settings.checks import BUDGET
from layercard.sizes import bytes_text, parse_size

DEFAULT_SCORE = "resnorm"
DEFAULT_SHARE = 1 / 3
"""The share of the layers that have adapters, rounded up, that a strategy adapts where no number is given."""
DEFAULT_THRESHOLD = 0.75
"""The threshold of `cumulative` where none is given: act-lora.txt, section 7.2, finds its best k at 75%."""
_CUMULATIVE = "cumulative"


def needed_score(settings: PlacementSettings, strategies: Registry[Strategy]) -> str | None:
    """Return the score that must be probed before choosing, or None where layers are chosen without one.

    Raises `SettingsError` where the strategy is unknown, or a setting is given that this choice would not read.
    """
    _check_threshold(settings)
    if settings.strategy is not None and strategies[settings.strategy].by == "score":
        own = SET_GAIN if settings.strategy == SET_GAIN else None
        if own is not None and settings.score not in (None, own):
            raise SettingsError(
                f"`score` is {settings.score!r}, and the strategy `{own}` reads the score of its own name. Drop `score`, or use "
                "the strategy `high`."
            )
        return settings.score or own or DEFAULT_SCORE
    if settings.score is not None:
        raise SettingsError(
            f"`score` is {settings.score!r}, and {_chooser(settings)} reads no score. Drop `score`, or choose a strategy "
            "by score: `high`, `mid`, `low` or `cumulative`."
        )
    return None


def choose_placement(
    settings: PlacementSettings,
    num_layers: int,
    *,
    strategies: Registry[Strategy],
    scores: Mapping[str, LayerScores] | None = None,
    adaptable: tuple[int, ...] | None = None,
    step_ratio: StepRatio | None = None,
    peak: PeakBytes | None = None,
) -> LayerPlacement:
    """Return the layers that `settings` choose among layers 0 … `num_layers` - 1, with the reason for people.

    `scores` holds at least the score that `needed_score` names; `adaptable` are the layers that have adapters, ascending
    (None: every layer), and all choices are among those. Without a number a strategy adapts a third of them. `step_ratio`
    predicts step times, without which there is no `budget` and no `min_gain`, and `peak` bytes, without which there is no
    `max_memory`. Raises `SettingsError` where settings do not fit the depth, `PlacementError` where a saved placement does
    not fit the model or a strategy's answer cannot be used, `ProbeError` where the score of a layer is undefined.
    """
    score = needed_score(settings, strategies)
    adaptable = only_some(adaptable, num_layers)
    if settings.placement_path is not None:
        return LayerPlacement.load(settings.placement_path).fit(num_layers).among(adaptable)
    if settings.indices is not None:
        return _from_indices(settings.indices, num_layers, adaptable)
    request = request_of(
        settings, num_layers, None if score is None else (scores or {})[score], adaptable, step_ratio, peak
    )
    if settings.strategy is None:
        return _from_auto(settings, request)
    return _from_strategy(strategies[settings.strategy], request, strategies.owner(settings.strategy))


def check_depth(
    settings: PlacementSettings,
    num_layers: int,
    adaptable: tuple[int, ...] | None = None,
    step_ratio: StepRatio | None = None,
    peak: PeakBytes | None = None,
) -> None:
    """Raise `SettingsError` where `settings` do not fit the depth, or the layers that have adapters (None: every layer).

    A `budget` is checked where `step_ratio` predicts step times, `max_memory` where `peak` predicts bytes. Worth asking before
    a probe.
    """
    adaptable = only_some(adaptable, num_layers)
    if settings.indices is not None:
        _from_indices(settings.indices, num_layers, adaptable)
    elif settings.placement_path is None:
        request_of(settings, num_layers, None, adaptable, step_ratio, peak)


def only_some(layers: tuple[int, ...] | None, num_layers: int) -> tuple[int, ...] | None:
    """Return `layers`, or None where they are every layer."""
    return None if layers is not None and len(layers) == num_layers else layers


def _chooser(settings: PlacementSettings) -> str:
    if settings.placement_path is not None:
        return "a saved placement"
    if settings.indices is not None:
        return "a list of layers"
    return "`auto`" if settings.strategy is None else f"the strategy `{settings.strategy}`"


def _check_threshold(settings: PlacementSettings) -> None:
    if settings.cumulative_threshold is not None and settings.strategy != _CUMULATIVE:
        raise SettingsError(
            f"`cumulative_threshold` is {settings.cumulative_threshold}, and {_chooser(settings)} does not read it. Give "
            f"`strategy: {_CUMULATIVE}`, or say how many layers with `num_layers` or `fraction`."
        )
    if settings.strategy == _CUMULATIVE and (settings.num_layers is not None or settings.fraction is not None):
        size = "num_layers" if settings.num_layers is not None else "fraction"
        raise SettingsError(
            f"`{size}` is given, and the strategy `{_CUMULATIVE}` finds the number itself from `cumulative_threshold`. Drop "
            f"`{size}`, or use the strategy `high` for the layers ranked highest."
        )


def request_of(
    settings: PlacementSettings,
    num_layers: int,
    scores: LayerScores | None,
    adaptable: tuple[int, ...] | None,
    step_ratio: StepRatio | None = None,
    peak: PeakBytes | None = None,
) -> StrategyRequest:
    """Return what a strategy is asked; `count` is the number asked for, or the default one.

    Raises `SettingsError` and `ProbeError` as `choose_placement` does.
    """
    request = StrategyRequest(
        num_layers=num_layers,
        count=1,
        scores=scores,
        min_entry=settings.min_entry,
        seed=settings.random_seed,
        cumulative_threshold=settings.cumulative_threshold or DEFAULT_THRESHOLD,
        adaptable=adaptable,
        budget=settings.budget or 1.0,
        min_gain=settings.min_gain,
        step_ratio=step_ratio,
        max_memory=None if settings.max_memory is None else parse_size(settings.max_memory),
        peak=peak,
    )
    if not request.candidates:
        have = "" if adaptable is None else f", of which {describe(adaptable, num_layers)} have adapters"
        raise SettingsError(
            f"`min_entry` is {settings.min_entry}, and the model has layers 0–{num_layers - 1}{have}. Choose one of those."
        )
    _refuse_undefined(request)
    if settings.budget is not None and step_ratio is not None:
        check_budget(request)
    if request.max_memory is not None and peak is not None:
        check_memory(request)
    count = asked_count(settings, len(request.adapted))
    if count is None:
        count = min(len(request.candidates), math.ceil(len(request.adapted) * DEFAULT_SHARE - 1e-9))
    elif count > len(request.candidates):
        raise _too_many(settings, request, count)
    return replace(request, count=count)


def _too_many(settings: PlacementSettings, request: StrategyRequest, count: int) -> SettingsError:
    available, depth = len(request.candidates), request.num_layers
    below = f", of which `min_entry` ({settings.min_entry}) leaves {available}" if settings.min_entry else ""
    field = "num_layers" if settings.num_layers is not None else "fraction"
    value = settings.num_layers if settings.num_layers is not None else settings.fraction
    has = f"{depth}" if request.adaptable is None else f"{depth}, and {len(request.adapted)} of them have adapters"
    return SettingsError(
        f"`{field}` is {value}, which asks for {count} layers; the model has {has}{below}. Ask for at most {available}."
    )


def _refuse_undefined(request: StrategyRequest) -> None:
    """The probe vouches for the layers that it read; others may have adapters where it cannot look."""
    if request.scores is None:
        return
    bad = [layer for layer in request.candidates if not np.isfinite(request.scores.importance[layer])]
    if bad:
        raise ProbeError(
            f"The score `{request.scores.name}` is undefined for {describe(bad, request.num_layers)}: the probe reads linear "
            "modules, and the adapters there sit on something else. Use a strategy by depth, or choose layers by hand."
        )


def asked_count(settings: PlacementSettings, num_layers: int) -> int | None:
    """Return the number of layers that was asked for, a `fraction` rounded to the nearest and never to none.

    A fraction is of `num_layers`, the number of layers that have adapters.
    """
    if settings.fraction is not None:
        return max(1, math.floor(settings.fraction * num_layers + 0.5))
    return settings.num_layers


def _from_indices(indices: list[int], num_layers: int, adaptable: tuple[int, ...] | None) -> LayerPlacement:
    outside = [layer for layer in indices if layer >= num_layers]
    if outside:
        raise SettingsError(
            f"`indices` holds layer {outside[0]}, and the model has layers 0–{num_layers - 1}. Choose among those."
        )
    bare = [] if adaptable is None else sorted(set(indices) - set(adaptable))
    if bare and adaptable is not None:
        raise SettingsError(f"`indices` holds {without_adapters(bare, adaptable, num_layers)}")
    many = "" if adaptable is None else f", {how_many(len(indices), num_layers, adaptable)}"
    return LayerPlacement(
        layers=tuple(sorted(indices)),
        num_layers=num_layers,
        strategy="indices",
        score=None,
        reason=f"these layers were given{many}",
        adaptable=adaptable,
    )


def _from_auto(settings: PlacementSettings, request: StrategyRequest) -> LayerPlacement:
    asked = asked_count(settings, len(request.adapted)) is not None
    narrowed = auto_request(request, settings.prefer, request.count if asked else None)
    layers = choose_auto(narrowed, settings.prefer)
    return LayerPlacement(
        layers=layers,
        num_layers=request.num_layers,
        strategy="auto",
        score=None,
        reason=f"`auto` leaning to {settings.prefer}: {_many(layers, request)}, {RULES[settings.prefer].where}"
        f"{_above(settings.min_entry)}; {QUALITY_UNPROVEN}",
        adaptable=request.adaptable,
    )


def _from_strategy(strategy: Strategy, request: StrategyRequest, owner: str) -> LayerPlacement:
    layers = checked(strategy, request, owner)
    score = request.scores.name if request.scores is not None else None
    by = {"score": f"by `{score}`", "depth": "by depth", "chance": f"by chance with seed {request.seed}"}[strategy.by]
    share = f", the fewest that hold {request.cumulative_threshold:.0%} of it" if strategy.name == _CUMULATIVE else ""
    if strategy.name == BUDGET:
        share = _costs(request, layers)
    return LayerPlacement(
        layers=layers,
        num_layers=request.num_layers,
        strategy=strategy.name,
        score=score,
        reason=f"strategy `{strategy.name}` {by}: {_many(layers, request)}{share}{_above(request.min_entry)}",
        adaptable=request.adaptable,
    )


def _costs(request: StrategyRequest, layers: tuple[int, ...]) -> str:
    """What layers that were chosen by predicted costs are predicted to cost, beside the limits."""
    found = ""
    if request.step_ratio is not None:
        took = f", predicted to take {request.step_ratio(layers):.0%} of all-layer LoRA's step time"
        found = f"{took} (at most {request.budget:.0%})" if request.budget < 1 or request.max_memory is None else took
        if request.min_gain is not None:
            held = f"{share_held(request, layers):.0%} of its sum (at least {request.min_gain:.0%})"
            found = f", the cheapest that hold {held}{took}"
    if request.max_memory is not None and request.peak is not None:
        held, device = bytes_text(request.peak(layers)), bytes_text(request.max_memory)
        found += f" and to hold {held} of {device} at most"
    return found


def _many(layers: tuple[int, ...], request: StrategyRequest) -> str:
    return how_many(len(layers), request.num_layers, request.adaptable)


def _above(min_entry: int) -> str:
    return f", none below layer {min_entry}" if min_entry else ""
