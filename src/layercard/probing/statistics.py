"""`LayerStatistics`: everything the probe measured, one frozen value; scorers read nothing else.

Arrays are float64 numpy; the axes are `layers` (0 at the input) and `targets` (the union of target modules' names
inside a layer, sorted); NaN stands where a layer lacks a target. A field that no scorer asked for is None.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]

Need: TypeAlias = Literal[
    "gradients", "mean_gradient", "gradient_gram", "energy", "attention_norms", "representations", "covariance"
]
"""What a scorer can ask the probe for; those in `BACKWARD` cost a backward pass, the others do not."""
BACKWARD: frozenset[Need] = frozenset({"gradients", "mean_gradient", "gradient_gram"})
NEEDS: tuple[Need, ...] = (
    "gradients",
    "mean_gradient",
    "gradient_gram",
    "energy",
    "attention_norms",
    "representations",
    "covariance",
)


@dataclass(frozen=True)
class LayerStatistics:
    """What one pass over the probe examples measured."""

    model: str
    num_layers: int
    targets: tuple[str, ...]
    examples: int
    tokens: int
    seconds: float
    gradient_norm: Array | None = None
    """(layers,) mean over examples of √(Σ_m ‖∂L/∂B_m‖²), LoRA scale divided out."""
    module_gradient_norm: Array | None = None
    """(layers, targets) mean over examples of ‖∂L/∂B_m‖."""
    norm_of_mean_gradient: Array | None = None
    """(layers,) √(Σ_m ‖mean over examples of ∂L/∂B_m‖²)."""
    gradient_gram: Array | None = None
    """(layers, examples, examples) inner products of the examples' ∂L/∂B of a layer, LoRA scale divided out, unbiased estimates
    (`sketch.py`); the same examples in the same order in every layer."""
    energy: Array | None = None
    """(layers, targets) E‖x‖²/d over tokens, x what the target module reads, d its width."""
    attention_output_norm: Array | None = None
    """(layers,) mean over tokens of ‖output of the attention block‖₂."""
    attention_input_norm: Array | None = None
    """(layers,) mean over tokens of ‖input of the attention block‖₂."""
    cka: Array | None = None
    """(layers,) debiased linear CKA between a layer's input and output; NaN where undefined."""
    cka_position: str | None = None
    """Which token position CKA compared: `last token`, `token -2`, …, or `mean over tokens`."""
    effective_rank: Array | None = None
    """(layers,) exp of the entropy of the normalised covariance eigenvalues of a layer's input."""
    left_out: tuple[str, ...] = ()
    """What is adapted, or could be, and is not in the numbers: experts kept as parameters, adapters on convolutions."""
    notes: tuple[str, ...] = ()
    """What a reader of the numbers should know."""
    with_targets: tuple[int, ...] | None = None
    """The layers that hold a target module, ascending; None: every layer does."""

    @property
    def scored(self) -> tuple[int, ...]:
        """The layers that a score is asked of: those that hold a target module."""
        return tuple(range(self.num_layers)) if self.with_targets is None else self.with_targets
