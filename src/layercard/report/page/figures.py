"""The geometry of the page's pictures: numbers in, coordinates out. Knows no HTML, no colours and no report.

All pictures are `WIDTH` units wide, x grows to the right and y downward, as SVG has it. Coordinates are rounded to a tenth,
so that a file is small and the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH = 640.0
LEFT, RIGHT = 64.0, 16.0
"""Room for the labels of the vertical axis, and at the other end."""
PLOT = WIDTH - LEFT - RIGHT


@dataclass(frozen=True)
class Tick:
    """A place on an axis, and what it is called."""

    at: float
    label: str


@dataclass(frozen=True)
class Bar:
    """A layer: where its bar stands, and whether it is adapted."""

    layer: int
    x: float
    y: float
    width: float
    height: float
    chosen: bool

    @property
    def middle(self) -> float:
        """The x of its axis."""
        return _r(self.x + self.width / 2)


@dataclass(frozen=True)
class LayerPicture:
    """Scores over depth; the marks of adapted layers stand in a row of their own under the bars."""

    bars: tuple[Bar, ...]
    ticks: tuple[Tick, ...]
    marks_y: float
    bottom: float
    entry_x: float | None
    """The left edge of the lowest adapted layer; None where it is the first."""
    prefix: tuple[float, float] | None
    """x and width of the cached prefix."""
    height: float
    has_scores: bool


@dataclass(frozen=True)
class Segment:
    """One phase in a stacked bar."""

    name: str
    x: float
    width: float
    share: float
    number: int
    """Which colour and letter it has."""


@dataclass(frozen=True)
class Stack:
    """A bar of phases, one after the other."""

    name: str
    y: float
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class StackPicture:
    """Stacked bars beside each other, all of one scale."""

    stacks: tuple[Stack, ...]
    thickness: float
    height: float


@dataclass(frozen=True)
class PairPicture:
    """The ratio of every pair, the median, and the interval as a band; y is logarithmic."""

    dots: tuple[tuple[float, float], ...]
    median_y: float
    band: tuple[float, float]
    """y and height."""
    one_y: float
    ticks: tuple[Tick, ...]
    height: float
    bottom: float


@dataclass(frozen=True)
class LinePicture:
    """Seconds over steps of both runs, from a point each, and where they cross."""

    baseline: tuple[float, float, float, float]
    placed: tuple[float, float, float, float]
    crossing: tuple[float, float] | None
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    height: float
    bottom: float


@dataclass(frozen=True)
class Range:
    """A share on an axis, with an interval where one is known."""

    name: str
    x: float
    y: float
    span: tuple[float, float] | None
    shape: str


@dataclass(frozen=True)
class RangePicture:
    """Shares of the gain under each other."""

    ranges: tuple[Range, ...]
    threshold_x: float | None
    ticks: tuple[Tick, ...]
    height: float
    bottom: float


def layer_picture(
    importance: Sequence[float] | None, num_layers: int, chosen: Sequence[int], *, cached: bool
) -> LayerPicture:
    """Return the picture of `num_layers` layers; without `importance` all bars are equally high."""
    values = [1.0] * num_layers if importance is None else [v if math.isfinite(v) else 0.0 for v in importance]
    base, top = min(0.0, *values), max(0.0, *values)
    reach = (top - base) or 1.0
    tall, slot = (150.0 if importance is not None else 44.0), PLOT / num_layers
    wide = slot * 0.74
    bars = []
    for layer, value in enumerate(values):
        height = max(2.0, (value - base) / reach * tall)
        x = LEFT + layer * slot + (slot - wide) / 2
        bars.append(Bar(layer, _r(x), _r(14 + tall - height), _r(wide), _r(height), layer in set(chosen)))
    bottom = 14 + tall
    entry = min(chosen)
    edge = _r(LEFT + entry * slot)
    every = _round_step(num_layers / 8)
    ticks = [Tick(bar.middle, str(bar.layer)) for bar in bars if bar.layer % every == 0]
    return LayerPicture(
        bars=tuple(bars),
        ticks=tuple(ticks),
        marks_y=_r(bottom + 14),
        bottom=_r(bottom),
        entry_x=edge if entry else None,
        prefix=(LEFT, _r(edge - LEFT)) if cached and entry else None,
        height=_r(bottom + 62),
        has_scores=importance is not None,
    )


def stack_picture(stacks: Mapping[str, Mapping[str, float]], numbers: Mapping[str, int]) -> StackPicture:
    """Return bars of phases in any one unit, the longest across the picture; `numbers` gives each phase its colour."""
    longest = max(sum(parts.values()) for parts in stacks.values()) or 1.0
    thickness, gap = 40.0, 26.0
    drawn = []
    for row, (name, parts) in enumerate(stacks.items()):
        x, segments = 0.0, []
        for phase, value in parts.items():
            width = value / longest * (WIDTH - 4)
            if width > 0:
                segments.append(Segment(phase, _r(x + 2), _r(width), value / longest, numbers[phase]))
            x += width
        drawn.append(Stack(name, _r(22 + row * (thickness + gap)), tuple(segments)))
    return StackPicture(tuple(drawn), thickness, _r(22 + len(drawn) * (thickness + gap) - gap + 4))


def pair_picture(ratios: Sequence[float], median: float, interval: tuple[float, float]) -> PairPicture:
    """Return the picture of paired ratios, all above 0."""
    everything = [*ratios, *interval, median, 1.0]
    low, high = math.log(min(everything)), math.log(max(everything))
    room = max((high - low) * 0.12, 0.02)
    low, high = low - room, high + room
    top, bottom = 12.0, 172.0

    def y(ratio: float) -> float:
        return _r(bottom - (math.log(ratio) - low) / (high - low) * (bottom - top))

    slot = PLOT / len(ratios)
    dots = [(_r(LEFT + (i + 0.5) * slot), y(ratio)) for i, ratio in enumerate(ratios)]
    ticks = [Tick(y(r), f"{r:.2f}x") for r in _log_ticks(math.exp(low), math.exp(high))]
    return PairPicture(
        tuple(dots),
        y(median),
        (y(interval[1]), _r(y(interval[0]) - y(interval[1]))),
        y(1.0),
        tuple(ticks),
        206.0,
        bottom,
    )


def line_picture(steps: int, ends: tuple[float, float], spent: float, crossing: int | None) -> LinePicture:
    """Return seconds over `steps` steps up to the `ends` of all-layer and placed run, the latter `spent` seconds behind."""
    most = max(*ends, spent) or 1.0
    top, bottom = 12.0, 172.0

    def at(step: float, seconds: float) -> tuple[float, float]:
        return _r(LEFT + step / max(1, steps) * PLOT), _r(bottom - seconds / most * (bottom - top))

    cross = at(crossing, crossing / steps * ends[0]) if crossing is not None and crossing <= steps else None
    y_step = _nice(most / 4)
    y_ticks = [Tick(at(0, k * y_step)[1], f"{k * y_step:g} s") for k in range(int(most / y_step) + 1)]
    x_step = max(1, round(_nice(max(1, steps) / 5)))
    x_ticks = [Tick(at(k, 0)[0], f"{k:,}") for k in range(0, steps + 1, x_step)]
    return LinePicture(
        (*at(0, 0.0), *at(steps, ends[0])), (*at(0, spent), *at(steps, ends[1])), cross, tuple(x_ticks), tuple(y_ticks),
        216.0, bottom,
    )  # fmt: skip


def range_picture(
    shares: Sequence[tuple[str, float, Sequence[float] | None, str]], threshold: float | None
) -> RangePicture:
    """Return shares (name, value, interval, shape) on one axis, 0 and 1 always on it."""
    ends = [value for _, share, interval, _ in shares for value in (share, *(interval or ()))]
    low, high = min(0.0, *ends), max(1.0, *ends, *([] if threshold is None else [threshold]))
    high += (high - low) * 0.04

    def x(share: float) -> float:
        return _r(12 + (share - low) / (high - low) * (WIDTH - 24))

    each = 52.0
    ranges = []
    for row, (name, share, interval, shape) in enumerate(shares):
        span = None if interval is None else (x(interval[0]), x(interval[1]))
        ranges.append(Range(name, x(share), _r(34 + row * each), span, shape))
    bottom = 18 + len(ranges) * each
    step = _nice((high - low) / 5)
    first = math.ceil(low / step)
    ticks = [Tick(x(k * step), f"{k * step:.0%}") for k in range(first, math.floor(high / step) + 1)]
    return RangePicture(
        tuple(ranges), None if threshold is None else x(threshold), tuple(ticks), _r(bottom + 34), _r(bottom)
    )


def _log_ticks(low: float, high: float) -> list[float]:
    """About four round ratios between `low` and `high`, 1 among them where it lies there."""
    step = _nice((high - low) / 4)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [round(k * step, 6) for k in range(first, last + 1) if k > 0]


def _nice(value: float) -> float:
    """The smallest of 1, 2, 2.5 and 5 times a power of ten that is no smaller."""
    if value <= 0:
        return 1.0
    power = 10 ** math.floor(math.log10(value))
    return next((m * power for m in (1, 2, 2.5, 5) if m * power >= value * 0.999), 10 * power)


def _round_step(value: float) -> int:
    return max(1, round(_nice(value)))


def _r(value: float) -> float:
    return round(value, 1)
