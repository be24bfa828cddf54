"""Leave-one-out transfer (layer-card.txt, table 6): hide a measured card, choose from the others, look up what that reaches.

python benchmarks/transfer/run.py --write        # a few seconds: nothing is trained

Every measured Layer Card is the target once. Its outcomes are hidden and its resnorm stands for the target's probe; cards
of the same model decide (`cards/transfer.py`), under each `prefer`. What the choice reaches is what the hidden card has
recorded for it, compared with the best set it tried and with all-layer LoRA. Where no card matches, what `auto` does
by depth is looked up instead. `forced` lets the nearest card decide, whatever its ρ: what the rules for matching forgo,
or spare. Community cards are let in, for the question here is whether ranks carry over.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import arguments, report

from layercard.cards.card import LayerCard
from layercard.cards.correlation import likeness
from layercard.cards.library import Library, shipped_dir
from layercard.cards.options import WeightedCard, choose, options
from layercard.cards.query import SCORE, CardQuery
from layercard.cards.strata import REGIMES, regimes
from layercard.cards.transfer import TransferRules, transfer
from layercard.settings import Prefer

PREFERENCES: tuple[Prefer, ...] = ("quality", "balanced", "speed")
BY_DEPTH: dict[Prefer, str] = {"quality": "uniform", "balanced": "upper_uniform", "speed": "last"}
"""What `auto` does without a card, by the name that measured cards know it by."""


def by_model(cards: Sequence[LayerCard]) -> dict[str, list[LayerCard]]:
    """Return the measured cards of each model, in the order of their datasets."""
    found: dict[str, list[LayerCard]] = defaultdict(list)
    for card in sorted(cards, key=lambda c: c.key):
        if card.is_measured and not card.document["quick"]:
            found[card.document["model"]["id"]].append(card)
    return dict(found)


def dataset(card: LayerCard) -> str:
    return str(card.document["dataset"]["id"])


def matrices(cards: Sequence[LayerCard]) -> list[dict[str, Any]]:
    """Return one row a pair: Spearman's ρ, the partial one given depth, and how often depth alone does as well."""
    rows = []
    for i, one in enumerate(cards):
        for other in cards[i + 1 :]:
            first, second = one.importance(SCORE), other.importance(SCORE)
            assert first is not None
            assert second is not None
            found = likeness(first, second)
            rows.append(
                {
                    "one": dataset(one),
                    "other": dataset(other),
                    "spearman": round(found.spearman, 4),
                    "partial_spearman": round(found.partial_spearman, 4),
                    "p_value": round(found.p_value, 4),
                    "beats_depth": found.beats_depth,
                }
            )
    return rows


def reached(card: LayerCard, name: str) -> dict[str, Any]:
    """Return what the hidden card recorded for an outcome, beside its best one."""
    outcome, best = card.outcomes[name], card.best
    assert best is not None
    kept, most = card.share_kept(name), card.share_kept(best)
    assert kept is not None
    assert most is not None
    accuracy = {n: m.value for n, m in outcome.metrics.items() if n == "accuracy"}
    return {
        "chosen": name,
        "layers": outcome.count,
        "share_kept": round(kept, 4),
        "step_seconds_ratio": _rounded(outcome.step_seconds_ratio),
        "heldout_loss": _rounded(outcome.metrics[card.main_metric].value),
        "best": best,
        "share_kept_by_best": round(most, 4),
        "behind_best": round(most - kept, 4),
        **accuracy,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def left_out(target: LayerCard, others: Sequence[LayerCard], prefer: Prefer) -> dict[str, Any]:
    """Return what the other cards choose for the target, and what that reached."""
    importance = target.importance(SCORE)
    assert importance is not None
    query = CardQuery(target.document["model"], target.targets, target.targets, importance)
    choice = transfer(others, query, TransferRules(community=True, prefer=prefer))
    name = BY_DEPTH[prefer] if choice.chosen is None else choice.chosen.name
    compared = [match for match in choice.matches if match.spearman is not None]
    nearest = max(compared, key=lambda match: match.spearman or -1.0).card
    strata = regimes(importance) if target.num_layers >= len(REGIMES) else {}
    forced = choose(options([WeightedCard(nearest, 1.0)], strata), prefer)
    expected = None if choice.chosen is None else round(choice.chosen.share_kept, 4)
    return {
        "dataset": dataset(target),
        "prefer": prefer,
        "matched": [dataset(match.card) for match in choice.used],
        "decided_by": "depth" if choice.chosen is None else "cards",
        "why": choice.reason,
        "expected_share_kept": expected,
        **reached(target, name),
        "forced": {"nearest": dataset(nearest), **reached(target, forced.name)},
    }


def study(cards: Sequence[LayerCard]) -> dict[str, Any]:
    """Return everything for the cards of one model."""
    pairs = matrices(cards)
    rows = [
        left_out(target, [card for card in cards if card is not target], prefer)
        for target in cards
        for prefer in PREFERENCES
    ]
    outcomes = {dataset(card): {name: _recorded(card, name) for name in card.outcomes} for card in cards}
    return {
        "datasets": {dataset(card): card.status for card in cards},
        "pairs": pairs,
        "pairs_at_0.9": sum(pair["spearman"] >= 0.9 for pair in pairs),
        "pairs_that_beat_depth": sum(pair["beats_depth"] for pair in pairs),
        "left_out": rows,
        "outcomes": outcomes,
    }


def _recorded(card: LayerCard, name: str) -> dict[str, Any]:
    outcome = card.outcomes[name]
    values = {metric: round(m.value, 4) for metric, m in outcome.metrics.items()}
    return {
        "layers": outcome.count,
        **values,
        "share_kept": _rounded(card.share_kept(name)),
        "step_seconds_ratio": _rounded(outcome.step_seconds_ratio),
        "peak_memory_ratio": _rounded(outcome.peak_memory_ratio),
    }


def lines(model: str, found: dict[str, Any]) -> list[str]:
    """Return Markdown tables for people: the matrix (ρ above the diagonal, given depth below), then what was chosen."""
    names = list(found["datasets"])
    cells = {(a, b): "1" for a in names for b in names}
    for pair in found["pairs"]:
        mark = "*" if pair["beats_depth"] else ""
        cells[pair["one"], pair["other"]] = f"{pair['spearman']:.2f}"
        cells[pair["other"], pair["one"]] = f"{pair['partial_spearman']:.2f}{mark}"
    out = [f"**{model}**", "", f"| | {' | '.join(names)} |", f"|---{'|---' * len(names)}|"]
    out += [f"| {a} | {' | '.join(cells[a, b] if a != b else '' for b in names)} |" for a in names]
    out += [
        "",
        "| left out | prefer | decided by | chosen | kept | best | behind best | step time | the nearest card would |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["left_out"]:
        by = ", ".join(row["matched"]) or "depth"
        seconds = "" if row["step_seconds_ratio"] is None else f"{row['step_seconds_ratio']:.2f}"
        forced = row["forced"]
        out.append(
            f"| {row['dataset']} | {row['prefer']} | {by} | {row['chosen']} ({row['layers']}) | {row['share_kept']:.0%} | "
            f"{row['best']} {row['share_kept_by_best']:.0%} | {row['behind_best']:.0%} | {seconds} | "
            f"{forced['chosen']} {forced['share_kept']:.0%} ({forced['nearest']}) |"
        )
    return [*out, ""]


def main() -> None:
    parser: argparse.ArgumentParser = arguments(__doc__.splitlines()[0])
    parser.add_argument(
        "--cards", type=Path, default=shipped_dir(), help="a folder of cards (default: the shipped ones)"
    )
    args = parser.parse_args()
    library = Library.of([("", args.cards)])
    groups = {model: cards for model, cards in by_model(library.cards).items() if len(cards) > 1}
    if args.quick:
        groups = {model: cards[:2] for model, cards in list(groups.items())[:1]}
    results = {model: study(cards) for model, cards in groups.items()}
    for model, found in results.items():
        sys.stdout.write("\n".join(lines(model, found)) + "\n")
    report("transfer", args, results)


if __name__ == "__main__":
    main()
