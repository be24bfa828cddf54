"""The geometry of the page's pictures, against what it must be whatever the numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layercard.report.page.figures import (
    LEFT,
    PLOT,
    WIDTH,
    layer_picture,
    line_picture,
    pair_picture,
    range_picture,
    stack_picture,
)

FINITE = st.floats(-1e6, 1e6)


@given(st.lists(FINITE, min_size=2, max_size=90), st.data())
def test_bars_stay_inside_and_are_as_high_as_their_scores(values, data):
    chosen = sorted(data.draw(st.sets(st.integers(0, len(values) - 1), min_size=1)))
    picture = layer_picture(values, len(values), chosen, cached=True)
    assert [bar.chosen for bar in picture.bars] == [i in chosen for i in range(len(values))]
    for bar in picture.bars:
        assert bar.x >= LEFT - 0.1 and bar.x + bar.width <= LEFT + PLOT + 0.1
        assert bar.y >= 0 and abs(bar.y + bar.height - picture.bottom) <= 0.2
    order = sorted(range(len(values)), key=lambda i: values[i])
    heights = [picture.bars[i].height for i in order]
    assert heights == sorted(heights)
    assert (picture.prefix is None) == (min(chosen) == 0) == (picture.entry_x is None)


def test_layers_without_scores_are_equally_high_and_nothing_is_hatched_without_a_cache():
    picture = layer_picture(None, 5, [2, 4], cached=False)
    assert len({bar.height for bar in picture.bars}) == 1 and picture.prefix is None
    assert picture.entry_x == pytest.approx(LEFT + 2 * PLOT / 5)


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=6), st.lists(st.floats(0, 1e3), min_size=1, max_size=6))
def test_segments_are_as_long_as_their_phases_and_end_to_end(first, second):
    runs = {"all": {f"p{i}": v for i, v in enumerate(first)}, "placed": {f"p{i}": v for i, v in enumerate(second)}}
    picture = stack_picture(runs, {f"p{i}": i for i in range(6)})
    longest = max(sum(first), sum(second))
    for stack, values in zip(picture.stacks, (first, second), strict=True):
        drawn = sum(segment.width for segment in stack.segments)
        assert drawn == pytest.approx(sum(values) / (longest or 1) * (WIDTH - 4), abs=0.5)
        assert all(s.x >= 2 and s.x + s.width <= WIDTH for s in stack.segments)


@given(st.lists(st.floats(0.05, 20), min_size=1, max_size=40))
def test_higher_ratios_stand_higher_and_one_is_on_the_picture(ratios):
    low, high = min(ratios), max(ratios)
    picture = pair_picture(ratios, sorted(ratios)[len(ratios) // 2], (low, high))
    heights = [y for _, y in picture.dots]
    assert all(0 <= y <= picture.bottom for y in (*heights, picture.one_y, picture.median_y))
    assert [y for _, y in sorted(zip(ratios, heights, strict=True))] == sorted(heights, reverse=True)
    assert picture.band[0] == pytest.approx(min(heights), abs=0.11) and picture.band[1] >= 0


def test_lines_cross_where_the_placed_run_catches_up():
    steps, slow, fast, spent = 400, 2.0, 1.0, 40.0
    picture = line_picture(steps, (steps * slow, spent + steps * fast), spent, 40)
    x1, y1, x2, y2 = picture.placed
    assert picture.crossing is not None
    x, y = picture.crossing
    assert y == pytest.approx(y1 + (y2 - y1) * (x - x1) / (x2 - x1), abs=0.2)
    a1, b1, a2, b2 = picture.baseline
    assert y == pytest.approx(b1 + (b2 - b1) * (x - a1) / (a2 - a1), abs=0.2)


@given(st.lists(st.tuples(st.floats(-2, 3), st.floats(0, 1)), min_size=1, max_size=4))
def test_shares_stand_in_order_with_nothing_and_everything_on_the_axis(values):
    shares = [("x", value, (value - spread, value + spread), "circle") for value, spread in values]
    picture = range_picture(shares, 0.9)
    assert picture.threshold_x is not None and 0 <= picture.threshold_x <= WIDTH
    drawn = [r.x for r in picture.ranges]
    assert [x for _, x in sorted(zip([v for v, _ in values], drawn, strict=True))] == sorted(drawn)
    assert all(0 <= x <= WIDTH for r in picture.ranges for x in (r.x, *(r.span or ())))
