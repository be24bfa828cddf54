"""Prints kept results as the Markdown tables of benchmarks/README.md: the gradient entry's and the guard's.

python benchmarks/tables.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
VARIANTS = ("as the host leaves it", "entry", "cache")
TITLES = {
    "hidden-288": "hidden 288, vocabulary 400, float32",
    "hidden-768": "hidden 768, vocabulary 400, float32",
    "nf4-hidden-768": "hidden 768, vocabulary 400, QLoRA NF4, double quantization",
    "smollm2-checkpointing": "SmolLM2-135M, bf16",
    "smollm2-checkpointing-off-above": "SmolLM2-135M, bf16, checkpointing off above the entry",
    "smollm2-no-checkpointing": "SmolLM2-135M, bf16, no checkpointing",
}


def results(setup: str) -> list[dict[str, Any]]:
    """Return the rows of one setup."""
    rows: list[dict[str, Any]] = json.loads((HERE / "results" / f"gradient_entry-{setup}.json").read_text())["results"]
    return rows


def table(setup: str) -> str:
    """Return the Markdown table of one setup."""
    lines = [
        f"**{TITLES[setup]}**",
        "",
        "| placement | TRL | entry (ceiling) | cache (ceiling) | peak MiB: all-layer, entry, cache |",
        "|---|---|---|---|---|",
    ]
    for row in results(setup):
        ratios, peaks, ceiling = row["faster than all-layer LoRA"], row["peak MiB"], row["ceiling"]
        cells = {v: f"{ratios[v]['value']:.2f}x [{ratios[v]['low']:.2f}, {ratios[v]['high']:.2f}]" for v in VARIANTS}
        lines.append(
            f"| {row['placement']} | {cells[VARIANTS[0]]} | {cells['entry']} ({ceiling['entry']:.2f}) | {cells['cache']} "
            f"({ceiling['cache']:.2f}) | {peaks['all-layer']}, {peaks['entry']}, {peaks['cache']} |"
        )
    return "\n".join(lines)


def guard_table() -> str:
    """Return the Markdown table of what the guard said at the beginning, beside the end, at both learning rates."""
    trials = json.loads((HERE / "results" / "guard.json").read_text())["results"]["trials"]["rows"]
    rows: dict[tuple[str, str], dict[float, str]] = {}
    for row in trials:
        said, end = row["said"], row["end"]
        low, high = said["interval"]
        shares = f"{said['share_in_trial']:.2f} | {said['share_kept']:.2f} [{low:.2f}, {high:.2f}] | {end[0]:.2f}"
        rows.setdefault((row["data"], row["placement"]), {})[row["rate"]] = shares
    rates = sorted({row["rate"] for row in trials})
    columns = " | ".join(f"{rate:g}: in trial | predicted | at the end" for rate in rates)
    lines = [f"| data | placement | {columns} |", "|---" * (2 + 3 * len(rates)) + "|"]
    for (data, placement), found in rows.items():
        lines.append(f"| {data} | {placement} | {' | '.join(found.get(rate, '| |') for rate in rates)} |")
    return "\n".join(lines)


def warnings_table() -> str:
    """Return the Markdown table of how often the guard warned rightly, wrongly, and not at all."""
    trials = json.loads((HERE / "results" / "guard.json").read_text())["results"]["trials"]
    kinds = ("right", "wrong", "missed", "rightly silent")
    lines = [
        "| constants | placements | threshold | rightly | wrongly | missed | rightly silent | error (rms) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in ("as shipped, not fitted on", "as shipped", "fitted on the other runs"):
        found = trials[name]
        for threshold, count in found["warnings"].items():
            counts = " | ".join(str(count[kind]) for kind in kinds)
            lines.append(f"| {name} | {found['placements']} | {threshold} | {counts} | {found['error']} |")
    return "\n".join(lines)


def main() -> None:
    """Print the tables."""
    sys.stdout.write("\n\n".join([*map(table, TITLES), guard_table(), warnings_table()]) + "\n")


if __name__ == "__main__":
    main()
