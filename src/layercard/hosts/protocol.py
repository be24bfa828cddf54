"""What the pipeline needs of a trainer: the protocol `Host`.

`locate_host` answers with one. The core answers for a plain `transformers.Trainer`, plugins for their own trainers.
A host never touches the model: probing, narrowing and timing are the stages' work; it only supplies the trainer's own
batches, losses and steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from layercard.probing.labels import Objective

    Inputs = Mapping[str, Any]


@dataclass(frozen=True)
class HeldOut:
    """Examples to judge a short training by; none where the trainer has too few."""

    source: str
    """`eval_dataset`, or `training set` where the trainer has none: then the run trains on them later."""
    batches: list[Inputs]
    """Collated batches of one row each, on CPU, the same on every process."""
    held_back: int
    """How many rows of the training set's sampled order they are; `update_batches` leaves those out."""


class Host(Protocol):
    """A trainer, seen from the pipeline. One instance serves one run."""

    name: str
    """The class that users know it by, such as `trl.SFTTrainer`."""
    trainer: Any
    """The trainer itself; it supplies `args`, `state` and `add_callback` as `transformers.Trainer` does."""

    @property
    def model(self) -> nn.Module:
        """The model with its adapters, unwrapped of DDP and the like: a `peft.PeftModel`."""

    @property
    def device(self) -> torch.device:
        """Where a training step runs."""

    @property
    def output_dir(self) -> Path:
        """Where placement.json and report.json are written."""

    def probe_batches(self, examples: int, batch_size: int | None, seed: int) -> Iterator[Inputs]:
        """Yield collated training batches holding `examples` documents in all, sampled with `seed`.

        Draws nothing from the global random state and leaves the trainer's own dataloader untouched. `batch_size` None
        means the trainer's own. Tensors stay on CPU. Raises `DataError` on an empty dataset.
        """

    @property
    def objective(self) -> Objective:
        """What `loss` computes: `model` (the model's own loss), `next_token` (cross-entropy), `own` (a user's function).

        A loss of a user's own is taken one example at a time.
        """

    @property
    def judged_by(self) -> str:
        """What `heldout_loss` is, in a few words, for the report."""

    @property
    def logits(self) -> Literal["whole", "tiled"] | None:
        """How a step's loss holds logits: all of them, or a tile at a time; None where a step runs more than its rows."""

    def loss(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """Return the training loss averaged over the batch's label terms, as a scalar that can be differentiated.

        Without router auxiliary loss, noise or label weighting across examples, and without touching the trainer's
        metrics. A label term is a position with a label (language models) or an example (classifiers).
        """

    def step_batches(self, count: int) -> list[tuple[Inputs, Any]]:
        """Return `count` training micro-batches with what the trainer's step needs beside them (`num_items_in_batch`)."""

    def training_step(self, model: nn.Module, batch: tuple[Inputs, Any]) -> None:
        """Run the trainer's own forward and backward of one micro-batch on the prepared `model`, without the optimizer."""

    def update_batches(self, count: int, held_back: int) -> list[list[tuple[Inputs, Any]]]:
        """Return the micro-batches of `count` optimizer steps, as this process of the run would train them.

        Each comes with what the trainer's step needs, counted over the whole optimizer step. Rows in the sampled order,
        the first `held_back` left out, again and again where there are few. Every process has to ask.
        """

    def heldout_batches(self, examples: int) -> HeldOut:
        """Return at most `examples` held-out rows with a label: of the trainer's eval set, else of its training set."""

    def heldout_loss(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """Return the loss by which a trained model is judged, as a scalar; metrics are left as they were."""

    def preserved(self) -> AbstractContextManager[None]:
        """Keep what a step moves in the trainer (metrics, token counters, state) and put it back at exit."""
