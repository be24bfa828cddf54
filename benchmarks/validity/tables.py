"""Renders kept results as the Markdown of `benchmarks/README.md`; needs no model and no data.

    python benchmarks/validity/tables.py [--results FOLDER] [--seeds 0] [--overview] [--checkpointed] [--chance]
        [--new-examples]

A selector stands in a pair's table once its runs of all the seeds are there; without `--seeds`, of those that all-layer
LoRA was trained from. `--overview` is one table of all pairs instead of one a pair.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from validity.judging import spearman_bound
from validity.results import ALL_LAYER, PairResults, against_chance, correlations, read, regret_at_equal_size, rows

RESULTS = Path(__file__).parents[1] / "results" / "validity"


def table(pair: PairResults, seeds: Sequence[int]) -> str:
    """Return a pair's table, the best loss at equal time first."""
    found = sorted(rows(pair, seeds), key=lambda row: row["loss_at_equal_time"] or row["loss_at_equal_steps"])
    own = regret_at_equal_size(pair, seeds)
    rates = ", ".join(f"{group} {rate:g}" for group, rate in sorted(pair.rates.items()))
    lines = [
        f"**{pair.name}** (seeds {', '.join(map(str, seeds))}; rates: {rates})",
        "",
        "| arm | layers | step time | loss, equal steps | kept | loss, equal time | kept | time to all-layer's loss | regret "
        "| of its size |",
        "|---" * 10 + "|",
    ]
    for row in found:
        lines.append(
            f"| {row['arm']} | {_or(row['size'], '{}')} | {_or(row['step_time'], '{:.2f}')} | "
            f"{row['loss_at_equal_steps']:.3f} | {row['kept']:.0%} | {_or(row['loss_at_equal_time'], '{:.3f}')} | "
            f"{_or(row['kept_at_equal_time'], '{:.0%}')} | {_or(row['time_to_all_layer'], '{:.2f}', 'not reached')} | "
            f"{_or(row['regret'], '{:.0%}')} | {_or(own.get(row['arm']), '{:.0%}')} |"
        )
    return "\n".join(lines)


def overview(pairs: Mapping[str, tuple[PairResults, Sequence[int]]], *, checkpointed: bool) -> str:
    """Return one row an arm and one column a pair, arms that the most pairs have first, then by what they keep at equal time.

    In a cell: step time; percent kept at equal steps / at equal time; time to all-layer LoRA's loss. All-layer LoRA itself is
    left out.
    """
    found = {
        name: {row["arm"]: row for row in rows(pair, seeds, checkpointed=checkpointed)}
        for name, (pair, seeds) in pairs.items()
    }
    arms = dict.fromkeys(arm for by_arm in found.values() for arm in by_arm if arm != ALL_LAYER)

    def order(arm: str) -> tuple[int, float]:
        there = [by_arm[arm] for by_arm in found.values() if arm in by_arm]
        return -len(there), -median(row["kept_at_equal_time"] or row["kept"] for row in there)

    lines = [f"| arm | {' | '.join(found)} |", "|---" * (len(found) + 1) + "|"]
    for arm in sorted(arms, key=order):
        lines.append(f"| {arm} | {' | '.join(_cell(by_arm.get(arm)) for by_arm in found.values())} |")
    return "\n".join(lines)


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    in_time = "–" if row["kept_at_equal_time"] is None else f"{100 * row['kept_at_equal_time']:.0f}"
    kept = f"{100 * row['kept']:.0f} / {in_time}"
    return f"{_or(row['step_time'], '{:.2f}')}; {kept}; {_or(row['time_to_all_layer'], '{:.2f}', '–')}"


def chance_table(pairs: Mapping[str, tuple[PairResults, Sequence[int]]]) -> str:
    """Return how far each arm is ahead of sets drawn by chance, at equal steps, in points of percent kept."""
    lines = ["| arm | kept: mean | lowest | ahead of chance, points | on pairs |", "|---" * 5 + "|"]
    for row in against_chance(pairs):
        ahead, low, high = (f"{100 * row[part]:+.1f}" for part in ("ahead", "low", "high"))
        pairs_ahead = f"{row['pairs_ahead']} of {row['pairs']}"
        lines.append(
            f"| {row['arm']} | {row['mean']:.1%} | {row['lowest']:.0%} | {ahead} [{low}, {high}] | {pairs_ahead} |"
        )
    return "\n".join(lines)


def correlation_table(pairs: Mapping[str, tuple[PairResults, Sequence[int]]]) -> str:
    """Return Spearman's ρ of predicted and achieved: one row a scorer, one column a pair."""
    found = {name: correlations(pair, seeds) for name, (pair, seeds) in pairs.items()}
    found = {name: by_scorer for name, by_scorer in found.items() if by_scorer}
    scorers = sorted({scorer for by_scorer in found.values() for scorer in by_scorer})
    lines = [f"| score | {' | '.join(found)} |", "|---" * (len(found) + 1) + "|"]
    for scorer in scorers:
        cells = [_correlation(by_scorer.get(scorer)) for by_scorer in found.values()]
        lines.append(f"| {scorer} | {' | '.join(cells)} |")
    bounds = [_bound(next(iter(by_scorer.values()))) for by_scorer in found.values()]
    return "\n".join([*lines, f"| sets; |ρ| that chance passes once in 20 | {' | '.join(bounds)} |"])


def _correlation(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "undefined"
    return f"{_or(found['equal_size'], '{:.2f}')} / {_or(found['all_by_sum'], '{:.2f}')} / {_or(found['all_by_mean'], '{:.2f}')}"


def _bound(found: Mapping[str, Any]) -> str:
    counts = found["sets_of_equal_size"], found["sets"]
    return " / ".join(f"{count}; {_or(spearman_bound(count), '{:.2f}')}" for count in counts)


def _or(value: Any, form: str, otherwise: str = "") -> str:
    return otherwise if value is None else form.format(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--overview", action="store_true", help="one table of all pairs")
    parser.add_argument(
        "--checkpointed", action="store_true", help="the overview on the clock of gradient checkpointing"
    )
    parser.add_argument("--chance", action="store_true", help="each arm against sets drawn by chance")
    parser.add_argument("--new-examples", action="store_true", help="of the runs that see no example twice")
    args = parser.parse_args()
    pairs: dict[str, tuple[PairResults, Sequence[int]]] = {}
    for folder in sorted(path for path in args.results.iterdir() if path.is_dir()):
        pair = read(args.results, folder.name, new_examples=args.new_examples)
        pairs[pair.name] = pair, args.seeds or pair.seeds
    if args.chance:
        sys.stdout.write(chance_table(pairs) + "\n")
        return
    if args.overview or args.checkpointed:
        sys.stdout.write(overview(pairs, checkpointed=args.checkpointed) + "\n")
        return
    for pair, seeds in pairs.values():
        if rows(pair, seeds):
            sys.stdout.write(table(pair, seeds) + "\n\n")
    sys.stdout.write(correlation_table(pairs) + "\n")


if __name__ == "__main__":
    main()
