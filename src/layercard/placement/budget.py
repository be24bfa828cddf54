"""`budget`: the layers with the highest summed score whose predicted step stays within a share of all-layer LoRA's.

With `min_gain` the other way about: the layers that hold a share of the summed score at the lowest predicted step time.

A step's cost depends on how deep backpropagation goes, which the lowest adapted layer (the entry) decides, and on how many
layers are adapted. So for every possible entry the best layers above it are filled in until the budget is used up, and the
best of these sets is taken, or the cheapest that holds enough. That is the best set there is: every set has an entry, and
among those with one entry and one number of layers none costs more than another. What a step costs is told by
whoever asks (`StrategyRequest.step_ratio`). Memory (`max_memory`) is the same with bytes (`StrategyRequest.peak`), where all
layers hold alike; where they do not, a set that holds less than the best of its number may be passed over.

Scores are compared as sums. Where some are negative, all are counted from the lowest one, as `cumulative` does. A score that
knows what sets are worth (`set_gain`) is asked instead: above each entry its layers are picked one after another, which is not
sure to find the best set. Neither a sum of scores nor a gain is measured quality; that is unproven until a run is tried out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from layercard.anatomy.words import describe
from layercard.errors import PluginError, SettingsError
from layercard.placement.strategies import PeakBytes, Rule, StepRatio, Strategy, StrategyRequest
from layercard.settings.checks import BUDGET
from layercard.sizes import bytes_text, usable

TOLERANCE = 1e-9
"""All-layer LoRA is within a budget of 1, whatever rounding does to its ratio."""


@dataclass(frozen=True)
class Option:
    """A set of layers, ascending, its predicted step time over all-layer LoRA's, and its summed score or what it is worth."""

    layers: tuple[int, ...]
    step_ratio: float
    worth: float


def within_budget(request: StrategyRequest) -> list[int]:
    """Pick the layers with the highest summed score within `request.budget`; the cheapest of several such sets.

    Where `request.min_gain` is given, the cheapest set that holds that share of what all candidates are worth, and of several
    such sets the best. Sets that need more than `request.max_memory` are left out. Raises `SettingsError` where no layer is
    cheap enough, or no set within memory holds that share, `PluginError` where the request predicts no step times, or no
    bytes though they are limited.
    """
    check_budget(request)
    check_memory(request)
    found = list(options(request))
    if not found:
        raise SettingsError(
            f"No layer is within `budget` ({request.budget}) and within `max_memory` ({bytes_text(request.max_memory)}) as well. "
            "Raise one of them."
        )
    best = max(found, key=lambda option: (option.worth, -option.step_ratio, option.layers))
    if request.min_gain is None:
        return list(best.layers)
    whole = _whole(request) if request.max_memory is not None else best.worth
    least = request.min_gain * whole - TOLERANCE * abs(whole)
    enough = [option for option in found if option.worth >= least]
    if not enough:
        raise SettingsError(
            f"`min_gain` is {request.min_gain} and `max_memory` is {bytes_text(request.max_memory)}: what fits there holds "
            f"at most {best.worth / whole:.0%} of the summed score. Lower `min_gain`, raise `max_memory`, or take a smaller "
            "batch."
        )
    return list(min(enough, key=lambda option: (option.step_ratio, -option.worth, option.layers)).layers)


def share_held(request: StrategyRequest, layers: Collection[int]) -> float:
    """Return the share of what all candidates are worth that `layers` hold; 1 where they are worth nothing."""
    if request.scores is not None and request.scores.sets is not None:
        best = _whole(request)
        return request.scores.sets.of(tuple(layers)) / best if best > 0 else 1.0
    base = _base(request)
    whole = sum(float(request.importance[layer]) - base for layer in request.candidates)
    return sum(float(request.importance[layer]) - base for layer in layers) / whole if whole > 0 else 1.0


def options(request: StrategyRequest) -> Iterator[Option]:
    """Yield, for every entry and number of layers within budget and memory, the set with the highest summed score."""
    step_ratio, candidates = _step_ratio(request), request.candidates
    for place, entry in enumerate(candidates):
        for layers, worth in _filled(request, entry, candidates[place + 1 :]):
            ratio = step_ratio(layers)
            if ratio > request.budget + TOLERANCE or not _fits(request, layers):
                break  # more layers above the same entry cost no less
            yield Option(layers, ratio, worth)


def front(request: StrategyRequest, most: int = 10) -> list[Option]:
    """Return at most `most` of the options that no other beats in both step time and worth, the cheapest first.

    They are spread evenly over the step times, the cheapest and the best among them: of the sets that take no longer than
    each of these times the best.
    """
    unbeaten: list[Option] = []
    for option in sorted(options(request), key=lambda option: (option.step_ratio, -option.worth)):
        if not unbeaten or option.worth > unbeaten[-1].worth:
            unbeaten.append(option)
    lowest, highest = unbeaten[0].step_ratio, unbeaten[-1].step_ratio
    limits = [lowest + (highest - lowest) * step / (most - 1) for step in range(most)]
    best = [max(o for o in range(len(unbeaten)) if unbeaten[o].step_ratio <= limit + TOLERANCE) for limit in limits]
    return [unbeaten[o] for o in dict.fromkeys(best)]


def check_budget(request: StrategyRequest) -> None:
    """Raise `SettingsError` where not even the cheapest layer of the request is within its budget."""
    step_ratio = _step_ratio(request)
    ratio, layer = min((step_ratio([layer]), -layer) for layer in request.candidates)
    if ratio > request.budget + TOLERANCE:
        raise SettingsError(
            f"`budget` is {request.budget}, and {describe([-layer], request.num_layers)} alone, the cheapest, is predicted to "
            f"take {ratio:.3f} of all-layer LoRA's step time: what is frozen runs forward all the same, and so does the head. "
            f"Give at least {_rounded_up(ratio)}."
        )


def check_memory(request: StrategyRequest) -> None:
    """Raise `SettingsError` where not even the layer that needs least is predicted to fit the request's memory."""
    if request.max_memory is None:
        return
    peak = _peak(request)
    needed, layer = min((peak([layer]), -layer) for layer in request.candidates)
    if needed > usable(request.max_memory):
        raise SettingsError(
            f"`max_memory` is {bytes_text(request.max_memory)}, of which a tenth stays free, and "
            f"{describe([-layer], request.num_layers)} alone is predicted to need {bytes_text(needed)}. `layercard plan "
            "--memory` names what would make a run fit: smaller batches, gradient checkpointing, weights in fewer bits."
        )


def _fits(request: StrategyRequest, layers: Collection[int]) -> bool:
    return request.max_memory is None or _peak(request)(layers) <= usable(request.max_memory)


def _peak(request: StrategyRequest) -> PeakBytes:
    if request.peak is None:
        raise PluginError(
            "Memory was limited, and nobody predicts it. Whoever asks for the strategy `budget` with `max_memory` gives `peak`."
        )
    return request.peak


def _whole(request: StrategyRequest) -> float:
    """Return what the best set is worth, whatever it costs."""
    return max(option.worth for option in options(replace(request, budget=float("inf"), max_memory=None)))


def _rounded_up(ratio: float) -> float:
    return -(-ratio * 1000 // 1) / 1000


def _step_ratio(request: StrategyRequest) -> StepRatio:
    if request.step_ratio is None:
        raise PluginError(
            "A budget was given, and nobody predicts step times. Whoever asks for the strategy `budget` gives `step_ratio`."
        )
    return request.step_ratio


def _filled(request: StrategyRequest, entry: int, above: Sequence[int]) -> Iterator[tuple[tuple[int, ...], float]]:
    """Yield `entry` alone, then with the best layer of those above it, the best two, and so on, each with what it is worth."""
    held: list[int] = []
    for layer, worth in _worths(request, entry, above):
        held.append(layer)
        yield tuple(sorted(held)), worth


def _worths(request: StrategyRequest, entry: int, above: Sequence[int]) -> Iterator[tuple[int, float]]:
    """Yield `entry`, then the layers above it, the best first, each with what all of them so far are worth."""
    if request.scores is not None and request.scores.sets is not None:
        yield entry, request.scores.sets.of([entry])
        yield from request.scores.sets.grown([entry], above)
        return
    importance, allowed, worth = request.importance, set(above), 0.0
    base = _base(request)
    for layer in (entry, *(layer for layer in request.ranked if layer in allowed)):
        worth += float(importance[layer]) - base
        yield layer, worth


def _base(request: StrategyRequest) -> float:
    """Return what scores are counted from: 0, or the lowest where some are negative."""
    return min(0.0, float(min(request.importance[layer] for layer in request.candidates)))


STRATEGIES: tuple[Strategy, ...] = (Rule(BUDGET, "score", within_budget),)
