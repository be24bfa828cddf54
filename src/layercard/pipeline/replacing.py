"""Changes the placement of a run that begins to train: `adopt` other layers, and `settle` what hangs on them.

`adopt` changes the model alone, so that a placement can be tried out; `settle` makes optimizer and scheduler anew and
writes placement.json. A run that has adopted all layers trains bit for bit as one without layercard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from layercard.anatomy.narrow import narrow
from layercard.anatomy.verify import verify_placement
from layercard.hosts.optimizers import renew_optimizer
from layercard.pipeline.ranks import check_ranks_agree
from layercard.pipeline.resume import GUARDED, NAME

if TYPE_CHECKING:
    from layercard.pipeline.session import PlacedRun


def adopt(run: PlacedRun, layers: Sequence[int], reason: str) -> None:
    """Adapt `layers` from now on, each with the adapter values that it had when the host made them."""
    run.narrowing.undo()
    run.narrowing = narrow(run.host.model, run.stack, layers)
    run.placement = replace(
        run.placement, layers=run.narrowing.layers, strategy=GUARDED, reason=reason, evidence="none", cards=()
    )
    verify_placement(run.host.model, run.stack, run.layers)


def settle(run: PlacedRun, max_steps: int) -> None:
    """Make optimizer and scheduler anew for the layers that were adopted, and write them down."""
    check_ranks_agree(run.placement)
    renew_optimizer(run.host.trainer, max_steps)
    if run.host.trainer.is_world_process_zero():
        run.placement.save(run.host.output_dir / NAME)
