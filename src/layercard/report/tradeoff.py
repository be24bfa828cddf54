"""What layers cost and what they bring, in the terms of layer-card.txt's table 6, for runs and for Layer Cards.

    speedup            throughput over that of all-layer LoRA, less one
    performance drop   1 - performance / performance of all-layer LoRA; negative where fewer layers did better
    ratio              speedup / performance drop; none where nothing was lost

A run's performance is the share of all-layer LoRA's gain that it keeps, a card's is its main metric.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from layercard.cards.card import LayerCard
from layercard.cards.options import EVERY
from layercard.cards.reading import read_card
from layercard.cost.speedup import SpeedupReport
from layercard.errors import CardError
from layercard.report.files import find_report, load_report
from layercard.report.forgetting import UNKNOWN, forgetting_rise
from layercard.report.phases import layers_in_run
from layercard.report.tables import markdown_table
from layercard.report.verdict import verdict_of
from layercard.report.words import layers_words, loss_words

NONE = "-"


@dataclass(frozen=True)
class Tradeoff:
    """One set of layers; what is not known is None. Percentages are those of table 6, 63.72 and not 0.6372."""

    name: str
    layers: str
    speedup_percent: float | None
    performance_drop_percent: float | None
    ratio: float | None
    of: str
    """What the performance is, such as `accuracy` or `gain in held-out loss`."""
    evidence: str
    """How the performance is known: `measured`, `predicted`, `Layer Card`, `published`, `unproven`, `reference`."""
    heldout_loss: float | None = None
    """Of a run, the trainer's own last evaluation."""
    forgetting: float | None = None
    """Of a run, the rise of the loss on its control rows by the end, in nats a token."""


def tradeoff(
    name: str,
    layers: str,
    speedup: float | None,
    performance: float | None,
    *,
    of: str,
    evidence: str,
    heldout_loss: float | None = None,
    forgetting: float | None = None,
) -> Tradeoff:
    """Return the row of a `speedup` (1.0 is none) and of a `performance` relative to all-layer LoRA (1.0 is equal)."""
    gained = None if speedup is None else (speedup - 1) * 100
    lost = None if performance is None else (1 - performance) * 100
    ratio = None if gained is None or lost is None or lost <= 0 else gained / lost
    return Tradeoff(name, layers, gained, lost, ratio, of, evidence, heldout_loss, forgetting)


def of_report(name: str, report: SpeedupReport) -> Tradeoff:
    """Return the row of a run."""
    quality = verdict_of(report).quality
    speedup = 1.0 if quality.kind == "reference" else report.step_speedup
    return tradeoff(
        name,
        layers_in_run(report),
        speedup,
        quality.share,
        of="gain in held-out loss" if quality.kind != "Layer Card" else "gain on a Layer Card",
        evidence=quality.kind,
        heldout_loss=quality.final_heldout_loss,
        forgetting=forgetting_rise(report.quality),
    )


def of_card(card: LayerCard) -> list[Tradeoff]:
    """Return a row for every set of layers that a card tried beside all of them; raise `CardError` without those."""
    outcomes = card.outcomes
    if EVERY not in outcomes:
        raise CardError(f"The Layer Card {card.key} holds no all-layer LoRA to compare with. Give another card.")
    return [_of_outcome(card, name) for name, outcome in outcomes.items() if outcome.kind != "reference"]


def _of_outcome(card: LayerCard, name: str) -> Tradeoff:
    """Performance is the main metric over all-layer LoRA's; of a loss, whose ratio means little, the share of the gain."""
    outcome, performance, of = card.outcomes[name], card.relative_to_all_layers(name), card.main_metric
    if performance is None:
        performance, of = card.share_kept(name), f"gain in {card.main_metric}"
    seconds = outcome.step_seconds_ratio
    layers = "unknown" if outcome.count is None else f"{outcome.count} of {card.num_layers} layers"
    if outcome.layers is not None:
        layers = layers_words(outcome.layers, card.num_layers)
    evidence = "measured" if card.is_measured else "published"
    return tradeoff(
        f"{card.key}: {name}", layers, None if seconds is None else 1 / seconds, performance, of=of, evidence=evidence
    )


def read_tradeoffs(paths: Iterable[Path]) -> list[Tradeoff]:
    """Return the rows of folders of runs, report.json files and Layer Cards; raise `LayercardError` for anything else."""
    rows: list[Tradeoff] = []
    for path in paths:
        file = find_report(path)
        if _is_card(file):
            rows.extend(of_card(read_card(file)))
        else:
            rows.append(of_report(file.resolve().parent.name, load_report(file)))
    return rows


def _is_card(file: Path) -> bool:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # reading it as a report says what is wrong
    return isinstance(values, dict) and "outcomes" in values


COLUMNS = ("run", "layers", "speedup (%)", "perf. drop (%)", "ratio", "of", "evidence", "held-out loss", "forgetting")


def cells(row: Tradeoff) -> list[str]:
    """Return what a table shows of a row, in the order of `COLUMNS`."""
    numbers = (row.speedup_percent, row.performance_drop_percent, row.ratio)
    loss = NONE if row.heldout_loss is None else loss_words(row.heldout_loss)
    forgotten = UNKNOWN if row.forgetting is None else f"{row.forgetting:+.4f}"
    shown = [NONE if number is None else f"{number:.2f}" for number in numbers]
    return [row.name, row.layers, *shown, row.of, row.evidence, loss, forgotten]


def as_markdown(rows: Sequence[Tradeoff]) -> str:
    """Return a table in Markdown."""
    return markdown_table(COLUMNS, [cells(row) for row in rows], right=(2, 3, 4, 7, 8))


def as_csv(rows: Sequence[Tradeoff]) -> str:
    """Return CSV with the names of `Tradeoff`'s fields; what is not known is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Tradeoff)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()
