"""What is asked of a trainer's labels and loss before anything is trained or tried.

Offers `refuse_nothing_to_learn`, a look at labels alone, and `why_not_judged`, a try of a loss of the user's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from layercard.errors import DataError, HostError, LayercardError, NothingToLearnError
from layercard.probing.as_found import noiseless
from layercard.probing.faults import FAILURES, is_made_of
from layercard.probing.labels import read_labels_of
from layercard.probing.reading import read_documents

if TYPE_CHECKING:
    from layercard.hosts.protocol import Host

LOOKS = (8, 256, 4096)
"""How many training examples are looked at for a label, one after another, until one has it."""


def refuse_nothing_to_learn(host: Host) -> None:
    """Raise `NothingToLearnError` where the training set is empty, or none of its first sampled examples has a label.

    Runs the trainer's collator and no model. Says nothing of data that it cannot look at.
    """
    seen = 0
    for count in LOOKS:
        try:
            batches = list(host.probe_batches(count, None, host.trainer.args.seed))
        except NothingToLearnError:
            raise
        except (
            LayercardError,
            *FAILURES,
        ):  # read once, images, a collator of other rows: whoever needs them will say so
            return
        rows = sum(_rows(batch) for batch in batches)
        if rows == 0 or any(_teaches(host, batch) for batch in batches):
            return
        if rows == seen:
            break
        seen = rows
    raise NothingToLearnError(
        f"None of {seen} training examples has a label that is not masked (-100), so training would learn nothing. Check the "
        "labels: a prompt as long as `max_length` (Axolotl: `sequence_len`) leaves no completion, and a chat template without "
        "generation marks labels no assistant turn."
    )


def _rows(batch: Mapping[str, Any]) -> int:
    return max((len(v) for v in batch.values() if isinstance(v, torch.Tensor) and v.dim() > 0), default=0)


def _teaches(host: Host, batch: Mapping[str, Any]) -> bool:
    """Whether a batch has a label, or labels of a sort that cannot be counted."""
    try:
        return len(read_documents(batch, read_labels_of(host.model, host.objective))[1]) > 0
    except (DataError, *FAILURES):
        return True


def why_not_judged(host: Host) -> str | None:
    """Return in a sentence why a loss of the user's own cannot judge single examples, or None where it can."""
    if host.objective != "own":
        return None
    seed = host.trainer.args.seed
    try:
        together, alone = (list(host.probe_batches(2, size, seed)) for size in (2, 1))
        with noiseless(host.model), torch.no_grad():
            whole, *parts = (host.heldout_loss(host.model, batch) for batch in (*together[:1], *alone))
        if len(parts) < 2 or is_made_of(whole, parts):
            return None
    except (HostError, DataError):
        return None
    except FAILURES as error:
        return f"The trainer's own loss fails on a single example ({type(error).__name__}: {error}), so none can be held out."
    return (
        f"The trainer's own loss of two examples together ({float(whole):.4g}) is no average of theirs alone "
        f"({float(parts[0]):.4g} and {float(parts[1]):.4g}), so it cannot judge examples held out one by one."
    )
