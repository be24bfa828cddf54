"""Turns the probe's sums into `LayerStatistics`, in float64."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from layercard.probing.accumulators import RunSums
from layercard.probing.sampling import MOST_SAMPLED_TOKENS
from layercard.probing.similarity import debiased_linear_cka, effective_rank
from layercard.probing.statistics import Array, LayerStatistics, Need

MASSIVE = 20.0


def finish(
    sums: RunSums,
    targets: tuple[str, ...],
    *,
    model: str,
    needs: frozenset[Need],
    offset: int | None,
    notes: list[str],
    left_out: tuple[str, ...],
    seconds: float,
    with_targets: tuple[int, ...] | None = None,
) -> LayerStatistics:
    """Return the statistics of everything that `needs` asked for; NaN for layers that hold no target."""
    layers = len(sums.gradient_norm)
    bare = np.array([with_targets is not None and layer not in with_targets for layer in range(layers)])
    energy = _ratio(sums.energy, sums.energy_tokens) if "energy" in needs else None
    backward, norms = "gradients" in needs, "attention_norms" in needs
    position = None
    if "representations" in needs:
        position = "mean over tokens" if offset is None else "last token" if offset == 0 else f"token {-1 - offset}"
    return LayerStatistics(
        model=model,
        num_layers=layers,
        targets=targets,
        examples=sums.examples,
        tokens=sums.tokens,
        seconds=seconds,
        gradient_norm=_but(bare, (sums.gradient_norm / sums.examples).numpy()) if backward else None,
        module_gradient_norm=_module_norms(sums) if backward else None,
        norm_of_mean_gradient=_but(bare, _norm_of_mean(sums, layers)) if "mean_gradient" in needs else None,
        gradient_gram=_gradient_gram(sums, bare) if "gradient_gram" in needs else None,
        energy=energy,
        attention_input_norm=(sums.attention[0] / sums.tokens).numpy() if norms else None,
        attention_output_norm=(sums.attention[1] / sums.tokens).numpy() if norms else None,
        cka=_cka(sums, layers) if position else None,
        cka_position=position,
        effective_rank=_effective_ranks(sums, layers) if "covariance" in needs else None,
        left_out=left_out,
        with_targets=with_targets,
        notes=(*notes, *_notes(energy, targets, position, left_out)),
    )


def _but(bare: NDArray[np.bool_], values: Array) -> Array:
    return np.where(bare, np.nan, values)


def _ratio(total: torch.Tensor, count: torch.Tensor) -> Array:
    return torch.where(count > 0, total / count.clamp(min=1), torch.nan).numpy()


def _module_norms(sums: RunSums) -> Array:
    """NaN where a layer lacks the target, that is where it read no token."""
    return torch.where(sums.energy_tokens + sums.module_norm > 0, sums.module_norm / sums.examples, torch.nan).numpy()


def _norm_of_mean(sums: RunSums, layers: int) -> Array:
    squares = np.zeros(layers)
    for (layer, _), total in sums.gradients.items():
        squares[layer] += float((total.double() / sums.examples).square().sum())
    return np.sqrt(squares)


def _gradient_gram(sums: RunSums, bare: NDArray[np.bool_]) -> Array:
    sketches = np.concatenate(sums.sketches, axis=1)  # (layers, examples, S)
    grams = np.stack([rows @ rows.T for rows in sketches.astype(np.float64)])
    grams[bare] = np.nan
    return grams


def _cka(sums: RunSums, layers: int) -> Array:
    return np.array([debiased_linear_cka(_rows(sums.inputs[i]), _rows(sums.outputs[i])) for i in range(layers)])


def _effective_ranks(sums: RunSums, layers: int) -> Array:
    return np.array([effective_rank(_rows(sums.samples[i])[:MOST_SAMPLED_TOKENS]) for i in range(layers)])


def _rows(parts: list[NDArray[np.float32]]) -> Array:
    return np.concatenate(parts).astype(np.float64)


def _notes(
    energy: Array | None, targets: tuple[str, ...], position: str | None, left_out: tuple[str, ...]
) -> list[str]:
    notes = []
    if left_out:
        notes.append(f"left out, since no linear module reads for them: {', '.join(left_out)}")
    if position not in (None, "last token"):
        notes.append(f"CKA compares {position}: later tokens are the same in every example")
    for column, target in enumerate(targets if energy is not None else ()):
        assert energy is not None
        seen = energy[:, column]
        typical = np.median(seen[np.isfinite(seen)]) if np.isfinite(seen).any() else np.nan
        massive = np.flatnonzero(seen > MASSIVE * typical)
        if massive.size:
            times = np.nanmax(seen) / typical
            where = ", ".join(str(i) for i in massive)
            notes.append(f"massive activations at `{target}` of layer {where} (up to {times:.0f} times the median)")
    return notes
