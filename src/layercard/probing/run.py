"""`run_probe`: one forward and backward of the frozen model over the probe examples, every statistic in one pass.

Offers `run_probe`. Knows of batches and a loss, not of trainers. Cost: the forward and the backward through activations
of one pass; no weight gradient is formed. Memory: that of a training step with the same checkpointing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from layercard.anatomy.layers import LayerStack
from layercard.anatomy.targets import find_targets, weights_out_of_reach
from layercard.errors import ProbeError
from layercard.probing.as_found import as_found
from layercard.probing.finish import finish
from layercard.probing.labels import Objective, read_labels_of
from layercard.probing.passes import Loss, Passes
from layercard.probing.pulse import pulse
from layercard.probing.sharded import check_same_batches, class_name, in_shards, is_sharded
from layercard.probing.statistics import LayerStatistics, Need
from layercard.progress import Progress
from layercard.ranks import rank as this_rank
from layercard.ranks import ranks, together


def run_probe(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    stack: LayerStack,
    needs: Iterable[Need],
    loss: Loss | None = None,
    objective: Objective = "model",
    target_modules: Sequence[str] | None = None,
    rank: int = 8,
    seed: int = 0,
    checkpointing: bool | None = None,
    show_progress: bool = True,
) -> LayerStatistics:
    """Return what `needs` asks for, measured over `batches`.

    Parameters: `batches` are collated training batches (`input_ids` (rows, width), `labels`, …), on any device; `loss`
    returns the loss averaged over the batch's label terms, by default the model's own; `objective` says what it computes:
    what the model's own loss does, the cross-entropy of next tokens, or something of a user's own, which is then run one
    example at a time; `rank` and `seed` give A where the model has no adapters. Under torch.distributed the batches, the
    same on every rank, are shared out and the sums reduced; a model that FSDP2 shards runs all of them on every rank.
    The model is left exactly as found, also when this fails.
    Raises `DataError` (nothing to learn from), `ProbeError` (numbers that cannot be used), `ModelError`; where one rank fails,
    every rank raises (`layercard.ranks.together`).
    """
    began = time.perf_counter()
    with together():
        sharded = is_sharded(model)
        held = [dict(batch) for batch in batches]
        if sharded:
            check_same_batches(held)
        targets = find_targets(model, stack, names=target_modules)
        reading = read_labels_of(model, objective)
    with in_shards(model) if sharded else together():
        run = Passes(
            model, stack, targets, frozenset(needs), loss or own_loss, reading, held, rank, seed, divides=not sharded
        )
        progress = Progress("probing", show=show_progress)
        with (
            as_found(model, stack, checkpointing=checkpointing),
            run.trace,
            pulse(stack.layers, progress, backward=run.trace.backward),
        ):
            for batch in progress.over(held if sharded else held[this_rank() :: ranks()]):
                run.take(batch)
    if ranks() > 1:
        if sharded and this_rank() > 0:
            run.sums = run.sums.emptied()  # all ran the same batches: the first rank's numbers count, on every rank
        run.sums.reduce(run.device)
    run.check()
    return finish(
        run.sums, run.names, model=class_name(model), needs=run.needs, offset=run.offset, notes=run.notes,
        left_out=weights_out_of_reach(stack), seconds=time.perf_counter() - began,
        with_targets=tuple(sorted({target.layer for target in targets})),
    )  # fmt: skip


def own_loss(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """Return the model's own loss, averaged over label terms."""
    loss = model(**inputs).loss
    if not isinstance(loss, Tensor):
        raise ProbeError(
            f"{type(model).__name__} returned no loss for a batch of {sorted(inputs)}. The probe needs a model with a "
            "training head and batches with `labels`; pass `loss` for another objective."
        )
    return loss
