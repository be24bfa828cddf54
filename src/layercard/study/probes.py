"""Stage I's probes: every score of every layer, and how stable the ranking is over seeds and adapter ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from layercard.anatomy.words import describe
from layercard.data import Task, probe_data
from layercard.errors import ProbeError
from layercard.pipeline.before.looking import locate_layers
from layercard.probing.run import run_probe as measure
from layercard.probing.statistics import LayerStatistics
from layercard.registry import Extensions
from layercard.scores.base import checked, needs_of
from layercard.study.settings import StudyData, StudySettings

if TYPE_CHECKING:
    from torch import nn

SCORE = "resnorm"
"""The score that regimes are strata of."""


def run_probe(
    base: nn.Module,
    tokenizer: Any,
    task: Task,
    data: StudyData,
    settings: StudySettings,
    *,
    seed: int,
    rank: int,
    scores: Sequence[str],
    extensions: Extensions,
) -> dict[str, Any]:
    """Return what one probe measured, as JSON holds it.

    A score that is undefined for these data stands in `undefined` with the reason; that of the regimes must be defined.
    """
    examples = probe_data(
        data.train,
        tokenizer,
        task=task,
        examples=settings.probe_examples,
        batch_size=settings.probe_batch_size,
        max_length=settings.max_length,
        seed=seed,
        columns=data.columns,
        split=data.split,
        config=data.config,
        labels=data.labels,
        tokenize=extensions.tokenize_examples,
    )
    statistics = measure(
        base, examples.batches, stack=locate_layers(base, None, extensions), needs=needs_of(scores, extensions.scorers),
        target_modules=settings.target_modules, rank=rank, seed=seed, show_progress=False,
    )  # fmt: skip
    _refuse_partly_adapted(statistics)
    return _document(statistics, scores, extensions) | {"seed": seed, "rank": rank}


def _refuse_partly_adapted(statistics: LayerStatistics) -> None:
    if len(statistics.scored) < statistics.num_layers:
        raise ProbeError(
            f"The target modules stand in {describe(statistics.scored, statistics.num_layers)} alone, and a Layer Card ranks "
            "every layer. Build it for target modules that every layer holds."
        )


def _document(statistics: LayerStatistics, names: Sequence[str], extensions: Extensions) -> dict[str, Any]:
    registry = extensions.scorers
    scores, undefined = {}, {}
    for name in names:
        try:
            found = checked(registry[name].score(statistics), statistics)
        except ProbeError as error:
            if name == SCORE:
                raise
            undefined[name] = str(error)
            continue
        scores[name] = {
            "importance": found.importance.tolist(),
            "raw": found.raw.tolist(),
            "plugin": registry.owner(name),
        }
    energy = None if statistics.energy is None else [_row(row, statistics.targets) for row in statistics.energy]
    effective = None if statistics.effective_rank is None else statistics.effective_rank.tolist()
    return {
        "scores": scores,
        "undefined": undefined,
        "energy": energy,
        "effective_rank": effective,
        "targets": list(statistics.targets),
        "examples": statistics.examples,
        "tokens": statistics.tokens,
        "seconds": statistics.seconds,
        "notes": list(statistics.notes),
    }


def _row(row: Any, targets: Sequence[str]) -> dict[str, float]:
    return {name: float(value) for name, value in zip(targets, row, strict=True) if np.isfinite(value)}


def importance(probed: dict[str, Any]) -> Any:
    """Return (layers,) resnorm of a probe."""
    return np.array(probed["scores"][SCORE]["importance"], dtype=np.float64)


def stability(by_seed: Sequence[dict[str, Any]], by_rank: Sequence[dict[str, Any]], rank: int) -> dict[str, Any]:
    """Return Kendall's τ, the mean over pairs of probe seeds, and Spearman's ρ of each adapter rank with `rank`."""
    from itertools import combinations

    from scipy.stats import kendalltau, spearmanr

    pairs = list(combinations([importance(p) for p in by_seed], 2))
    taus = [float(kendalltau(one, other).statistic) for one, other in pairs]
    reference = importance(next(p for p in by_rank if p["rank"] == rank))
    correlation = {str(p["rank"]): _bounded(spearmanr(importance(p), reference).statistic) for p in by_rank}
    return {
        "kendall_tau_over_seeds": _bounded(sum(taus) / len(taus)) if taus else None,
        "probe_seeds": [p["seed"] for p in by_seed],
        "rank_correlation": correlation,
        "reference_rank": rank,
    }


def _bounded(value: float) -> float:
    return min(1.0, max(-1.0, float(value)))
