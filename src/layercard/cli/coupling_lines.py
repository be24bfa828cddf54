"""How much the chosen layers stand in for each other, where the score that chose them knows."""

from __future__ import annotations

from layercard.scores.base import LayerScores
from layercard.scores.coupling import Coupling, coupling
from layercard.scores.set_gain import SetGain


def coupled(scores: LayerScores | None, layers: tuple[int, ...]) -> Coupling | None:
    """Return the coupling of `layers`, or None where `scores` hold no set gain."""
    sets = None if scores is None else scores.sets
    return coupling(sets, layers) if isinstance(sets, SetGain) else None


def coupling_line(found: Coupling) -> str:
    """Return the coupling in a sentence."""
    words = f"Set gain {found.gain:.3f} of at most 0.5; the layers' gains alone add up to {found.added_up:.3f}"
    if len(found.layers) == 1:
        return f"{words}."
    first, second, kappa = found.strongest
    return (
        f"{words}. Coupling (0: they add up): ρ = {found.rho:.2f} for all of them, κ = {kappa:.2f} for layers {first} and "
        f"{second}, the two most alike."
    )
