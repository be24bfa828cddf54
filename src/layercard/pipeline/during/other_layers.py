"""Changes the placement of a run that begins to train: `adopt` other layers, and `settle` what hangs on them.

`freeze_alike` lets the shed layers follow an optimizer that froze a factor of the placed ones.

`adopt` changes the model alone, so that a placement can be tried out; `settle` makes optimizer and scheduler anew and
writes placement.json. A run that has adopted all layers trains bit for bit as one without layercard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from layercard.anatomy.adapters import sole_adapter
from layercard.anatomy.narrow import narrow
from layercard.anatomy.verify import a_is_frozen, factors_a
from layercard.hosts.optimizers import renew_optimizer
from layercard.pipeline.before.earlier import remember
from layercard.pipeline.before.other_parts import towers_to_shed
from layercard.pipeline.before.resume import GUARDED, NAME
from layercard.pipeline.during.agreeing import check_ranks_agree

if TYPE_CHECKING:
    from layercard.pipeline.placed_run import PlacedRun
    from layercard.settings.checks import OtherStacks


def adopt(run: PlacedRun, layers: Sequence[int], reason: str, *, other_stacks: OtherStacks | None = None) -> None:
    """Adapt `layers` from now on, each with the adapter values that it had when the host made them.

    `other_stacks` says what becomes of adapters on those, None leaves it as it was.
    """
    run.narrowing.undo()
    if run.placement.other_stacks is not None and other_stacks is not None:
        run.placement = replace(run.placement, other_stacks=other_stacks)
    towers = towers_to_shed(run.host.model, run.stack, run.placement)
    run.narrowing = narrow(run.host.model, run.stack, layers, shed_towers=towers)
    remember(run.model, run.narrowing)
    run.placement = replace(
        run.placement, layers=run.narrowing.layers, strategy=GUARDED, reason=reason, evidence="none", cards=()
    )
    run.verify()


def settle(run: PlacedRun, max_steps: int) -> None:
    """Make optimizer and scheduler anew for the layers that were adopted, and write them down."""
    check_ranks_agree(run.placement)
    renew_optimizer(run.host.trainer, max_steps)
    if run.host.trainer.is_world_process_zero():
        run.placement.save(run.host.output_dir / NAME)


def freeze_alike(run: PlacedRun) -> None:
    """Freeze A in the shed adapters where the run's optimizer froze it in the placed ones, as LoRA-FA's does.

    The trainer makes its optimizer after placing, so it has seen the placed layers alone; all-layer LoRA is to be compared as
    it would train.
    """
    model = run.host.model
    adapter = sole_adapter(model)
    if a_is_frozen(model, adapter):
        with run.narrowing.all_layers():
            for parameter in factors_a(model, adapter).values():
                parameter.requires_grad_(False)
