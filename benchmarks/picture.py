"""Draws docs/trade-off.svg from kept results: what a step of fewer layers saves, and beside it what it cost.

python benchmarks/picture.py           # prints the picture
python benchmarks/picture.py --write   # writes docs/trade-off.svg

Left from results/gradient_entry-smollm2-checkpointing.json, right from results/guard-ground-truth.json: the same model, the
same four placements. The picture brings its own background and follows the reader's light or dark scheme.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

HERE = Path(__file__).parent
PICTURE = HERE.parent / "docs" / "trade-off.svg"

PLACEMENTS = (
    ("last 5", "last 5", "last 5 of 30"),
    ("upper half", "upper half", "upper half"),
    ("uniform third over the upper two thirds", "uniform third, upper two thirds", "10 spread, from 11 up"),
    ("middle 5 (12–16)", "middle 5", "middle 5"),
)
"""Each placement's name in the one result, in the other, and in the picture."""

VARIANTS = (
    ("as the host leaves it", "host", "TRL, the same layers"),
    ("entry", "entry", "layercard"),
    ("cache", "cache", "layercard with cached prefix, from epoch 2"),
)
"""Each variant's name in the result, its class, and its name in the picture."""

STYLE = """
.paper{fill:#fff}.ink{fill:#1f2328}.soft{fill:#57606a}.rule{stroke:#8c959f;stroke-width:1}.grid{stroke:#d0d7de;stroke-width:1}
.host{fill:#8c959f}.entry{fill:#0969da}.cache{fill:#0a3069}.dot{fill:#bc4c00}.span{stroke:#bc4c00;stroke-width:2}
@media(prefers-color-scheme:dark){.paper{fill:#0d1117}.ink{fill:#e6edf3}.soft{fill:#9198a1}.rule{stroke:#7d8590}
.grid{stroke:#30363d}.host{fill:#7d8590}.entry{fill:#4493f8}.cache{fill:#a5d6ff}.dot{fill:#f0883e}.span{stroke:#f0883e}}
text{font:13px system-ui,-apple-system,'Segoe UI',sans-serif}.head{font-weight:600;font-size:14px}.small{font-size:12px}
"""

WIDTH, LEFT, TOP, ROW, BAR = 860, 16, 92, 62, 15
BOTTOM = TOP + ROW * len(PLACEMENTS)
LABELS_END = 152
SPEED = (160, 450, 0.0, 3.0)
KEPT = (560, 820, 0.6, 1.0)
"""Of a panel: its left and right edge, and the values that stand there."""


@dataclass(frozen=True)
class Row:
    """One placement: how many times as fast a step is as all-layer LoRA's, by variant, and shares of its gain, by run."""

    label: str
    ratios: dict[str, float]
    shares: Sequence[float]


def read(name: str) -> Any:
    """Return the results of a kept document."""
    return json.loads((HERE / "results" / f"{name}.json").read_text(encoding="utf-8"))["results"]


def shares(placement: str) -> list[float]:
    """Return the shares of all-layer LoRA's gain in held-out loss that a placement kept at the end of each run, sorted."""
    runs: dict[tuple[str, float], dict[str, list[float]]] = {}
    start: dict[tuple[str, float], float] = {}
    for run in read("guard-ground-truth"):
        key = run["data"], run["rate"]
        runs.setdefault(key, {})[run["placement"]] = run["heldout_losses"]["200"]
        if "0" in run["heldout_losses"]:
            start[key] = mean(run["heldout_losses"]["0"])
    gains = {key: {name: start[key] - mean(losses) for name, losses in of.items()} for key, of in runs.items()}
    return sorted(of[placement] / of["all-layer"] for of in gains.values())


def rows() -> list[Row]:
    """Return the placements of the picture."""
    timed = {
        row["placement"]: row["faster than all-layer LoRA"] for row in read("gradient_entry-smollm2-checkpointing")
    }
    return [
        Row(
            label,
            {variant: timed[in_times][variant]["value"] for variant, _, _ in VARIANTS},
            shares(in_shares),
        )
        for in_times, in_shares, label in PLACEMENTS
    ]


def at(panel: tuple[float, float, float, float], value: float) -> float:
    """Return where a value stands in a panel, in pixels from the left."""
    left, right, low, high = panel
    return round(left + (value - low) / (high - low) * (right - left), 1)


def text(x: float, y: float, words: str, kind: str = "ink", anchor: str = "start") -> str:
    """Return a line of text."""
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{words}</text>'


def line(kind: str, x: float, top: float, other: float, bottom: float) -> str:
    """Return a straight line."""
    return f'<line class="{kind}" x1="{x}" y1="{top}" x2="{other}" y2="{bottom}"/>'


def heads() -> Iterator[str]:
    """Yield the titles of both panels and the legend."""
    yield text(LEFT, 24, "What you buy: faster steps", "ink head")
    yield text(LEFT, 43, "a step, times as fast as all-layer LoRA’s", "soft small")
    yield text(KEPT[0], 24, "What you pay: less learned", "ink head")
    yield text(KEPT[0], 43, "share of all-layer LoRA’s gain in held-out loss", "soft small")
    yield text(KEPT[0], 63, "kept after 200 steps; each dot is one of six runs", "soft small")
    for (_, kind, words), x in zip(VARIANTS, (LEFT, 170, 260), strict=True):
        yield f'<rect class="{kind}" x="{x}" y="53" width="11" height="11"/>'
        yield text(x + 16, 63, words, "soft small")


def axes() -> Iterator[str]:
    """Yield grid lines with their values; all-layer LoRA's own line is darker."""
    for panel, values, form in ((SPEED, (1, 2, 3), "{:.0f}x"), (KEPT, (0.6, 0.7, 0.8, 0.9, 1.0), "{:.0%}")):
        for value in values:
            x = at(panel, value)
            yield line("rule" if value == 1 else "grid", x, TOP - 8, x, BOTTOM)
            yield text(x, BOTTOM + 18, form.format(value), "soft small", "middle")


def body(index: int, row: Row) -> Iterator[str]:
    """Yield one placement's bars and dots."""
    top = TOP + index * ROW
    middle = top + 1.5 * BAR
    yield text(LABELS_END, middle + 5, row.label, "ink", "end")
    for place, (variant, kind, _) in enumerate(VARIANTS):
        y, right = top + place * BAR, at(SPEED, row.ratios[variant])
        yield f'<rect class="{kind}" x="{SPEED[0]}" y="{y}" width="{right - SPEED[0]:.1f}" height="{BAR - 2}"/>'
        yield text(right + 5, y + 11, f"{row.ratios[variant]:.2f}x", "ink small")
    yield line("span", at(KEPT, row.shares[0]), middle, at(KEPT, row.shares[-1]), middle)
    for share in row.shares:
        yield f'<circle class="dot" cx="{at(KEPT, share)}" cy="{middle}" r="4"/>'
    yield text(at(KEPT, row.shares[0]), middle - 9, f"{row.shares[0]:.0%}", "ink small", "middle")
    yield text(at(KEPT, row.shares[-1]), middle - 9, f"{row.shares[-1]:.0%}", "ink small", "middle")


def drawn(found: Sequence[Row]) -> str:
    """Return the picture."""
    told = "; ".join(
        f"{row.label}: {row.ratios['as the host leaves it']:.2f}x in TRL, {row.ratios['entry']:.2f}x with layercard, "
        f"{row.ratios['cache']:.2f}x with a cached prefix, {row.shares[0]:.0%} to {row.shares[-1]:.0%} kept"
        for row in found
    )
    height = BOTTOM + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="name told">',
        '<title id="name">Fewer adapted layers of SmolLM2-135M: a faster step, and less learned in as many steps</title>',
        f'<desc id="told">{told}.</desc>',
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{height}" rx="6"/>',
        *heads(),
        *axes(),
        *(part for index, row in enumerate(found) for part in body(index, row)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def main() -> None:
    """Print the picture, or write it."""
    picture = drawn(rows())
    if "--write" in sys.argv[1:]:
        PICTURE.write_text(picture, encoding="utf-8")
    else:
        sys.stdout.write(picture)


if __name__ == "__main__":
    main()
