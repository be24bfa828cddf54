"""`share_kept`: how much of all-layer LoRA's gain in held-out loss a placement keeps, with its interval.

    share kept = (mean(before) - mean(placed)) / (mean(before) - mean(all layers))

over the losses of the same held-out examples before training, after all-layer LoRA, and after the placed one. The
interval is the percentile bootstrap over examples (Efron 1979): examples are drawn with replacement, all three losses
of an example together, and the share is taken anew. It says how far the number depends on which examples were held
out, and nothing of how a longer training would end. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

COVERAGE = 0.95
RESAMPLES = 2000
MOST_WITHOUT_GAIN = 0.05
"""Share of resamples in which all-layer LoRA may gain nothing before its gain is called indistinguishable from none."""


@dataclass(frozen=True)
class Share:
    """The share of the gain kept, and the interval that holds it with about 95% coverage over held-out examples.

    `value` is None where there is no gain to keep a share of, or a loss is not finite; `reason` says which.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None
    diverged: bool = False
    """The placed model's loss is not finite where the base model's is."""

    def below(self, threshold: float) -> bool:
        """Whether too little is kept: less than `threshold`, or the placed model diverged."""
        return self.diverged or (self.value is not None and self.value < threshold)


def share_kept(
    before: Sequence[float],
    all_layers: Sequence[float],
    placed: Sequence[float],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Share:
    """Return the share of all-layer LoRA's gain that the placed model keeps.

    The three sequences hold the losses of the same examples in the same order, in nats. Examples whose loss before
    training is not finite (those without a label) are left out. Draws nothing from the global random state.
    """
    losses = np.array([before, all_layers, placed], dtype=np.float64)
    losses = losses[:, np.isfinite(losses[0])]
    if losses.shape[1] == 0:
        return Share(None, reason="No held-out example has a finite loss before training.")
    if not np.isfinite(losses[1]).all():
        return Share(None, reason="All-layer LoRA diverged at this learning rate, so there is no gain to compare with.")
    if not np.isfinite(losses[2]).all():
        return Share(None, reason="The placed model diverged at this learning rate.", diverged=True)
    gains = losses[0] - losses[1:]
    return _share(gains, _resampled(gains, resamples, seed))


def mean_finite(losses: Sequence[float]) -> float | None:
    """Return the mean of the finite losses, None where there are none."""
    finite = np.asarray(losses, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    return float(finite.mean()) if len(finite) else None


def _resampled(gains: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Return mean gains of each resample, (2, resamples), of `gains`, (2, examples)."""
    examples = gains.shape[1]
    counts = np.random.default_rng(seed).multinomial(examples, np.full(examples, 1 / examples), size=resamples)
    means: np.ndarray = gains @ counts.T / examples
    return means


def _share(gains: np.ndarray, resampled: np.ndarray) -> Share:
    all_layers, placed = gains.mean(axis=1)
    gained = resampled[0] > 0
    if all_layers <= 0:
        return Share(None, reason=f"All-layer LoRA did not lower the held-out loss (by {all_layers:.4g}).")
    if 1 - gained.mean() > MOST_WITHOUT_GAIN:
        return Share(
            None,
            reason=f"All-layer LoRA lowered the held-out loss by {all_layers:.4g}, which these {gains.shape[1]} examples "
            "cannot tell from nothing.",
        )
    tail = (1 - COVERAGE) / 2
    low, high = np.quantile(resampled[1, gained] / resampled[0, gained], [tail, 1 - tail])
    return Share(float(placed / all_layers), float(low), float(high))
