"""`PlainHost`: what layercard needs of a plain `transformers.Trainer` whose model holds LoRA adapters.

It reads the trainer's own training set through its own collator, and runs its own `compute_loss` and
`training_step`, overridden or not. Trainers that define their own losses subclass it and answer `locate_host`
through a plugin; what they override are `loss` with its `objective`, `heldout_loss` with `judged_by`,
`probe_batches`, `step_batches`, `training_step` and `preserved`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from layercard.errors import DataError, HostError
from layercard.hosts import own_loss, trainer_data
from layercard.hosts.preserved import attributes_preserved
from layercard.hosts.rows import EMPTY, collated, documents_in, holding, sampled_rows
from layercard.probing.labels import read_labels_of
from layercard.probing.reading import read_documents
from layercard.random_state import random_state
from layercard.ranks import together

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from layercard.hosts.protocol import HeldOut, Inputs
    from layercard.probing.labels import Objective


class PlainHost:
    """A `transformers.Trainer`, seen from the pipeline; it satisfies `layercard.hosts.protocol.Host`."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.name = _name(type(trainer))

    @classmethod
    def answer(cls, trainer: Any) -> PlainHost | None:
        """Return a host for a `transformers.Trainer` or a user's subclass of it, None for anything else.

        Raises `HostError` for TRL's trainers with losses of their own: layercard-trl answers for those it supports.
        """
        from transformers import Trainer

        if not isinstance(trainer, Trainer):
            return None
        for kind in type(trainer).__mro__:
            own = {"compute_loss", "training_step"} & vars(kind).keys()
            if kind.__module__.startswith("trl.") and own:
                raise HostError(
                    f"{type(trainer).__name__} is `trl`'s {kind.__name__}, which defines its own `{min(own)}`. The core "
                    "places into transformers.Trainer and users' own subclasses of it; for TRL's trainers run "
                    "`pip install layercard-trl`, which says which of them it supports."
                )
        return cls(trainer)

    @property
    def model(self) -> nn.Module:
        """The model with its adapters, unwrapped."""
        model: nn.Module = self.trainer.model
        return model

    @property
    def device(self) -> torch.device:
        """Where a training step runs."""
        device: torch.device = self.trainer.args.device
        return device

    @property
    def objective(self) -> Objective:
        """What `loss` computes: the model's own loss, or something of the user's own."""
        return "own" if own_loss.has_own_loss(self.trainer) else "model"

    @property
    def judged_by(self) -> str:
        """What `heldout_loss` is, in a few words."""
        return "the trainer's own loss"

    @property
    def logits(self) -> Literal["whole", "tiled"] | None:
        """Liger's losses hold a tile of them."""
        return "tiled" if self.trainer.args.use_liger_kernel else "whole"

    @property
    def output_dir(self) -> Path:
        """Where placement.json and report.json are written."""
        return Path(self.trainer.args.output_dir)

    def probe_batches(self, examples: int, batch_size: int | None, seed: int) -> Iterator[Inputs]:
        """Yield collated training batches holding `examples` documents in all, sampled with `seed`; on CPU.

        A packed row counts its documents; datasets without a length give their first rows. The random state, the
        trainer's dataloader and accelerate are left alone. Raises `DataError` on an empty dataset.
        """
        size = batch_size or self.trainer.args.per_device_train_batch_size
        return iter(self._batches(examples, size, seed, documents_in))

    def loss(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """Return the trainer's own loss, averaged over the batch's label terms, under its own autocast.

        It is called as the trainer's own evaluation calls it, with the number of label terms in this batch. `model` decides
        about router losses and noise; the trainer's metrics are left as they were.
        """
        trainer = self.trainer
        with ExitStack() as undo:
            for context in (self.preserved(), own_loss.on_one_process(trainer.args)):
                undo.enter_context(context)
            undo.enter_context(trainer.compute_loss_context_manager())
            undo.enter_context(trainer.accelerator.autocast())
            prepared = trainer._prepare_inputs(dict(inputs))
            items = trainer._get_num_items_in_batch([prepared], self.device)
            loss: Tensor = trainer.compute_loss(model, prepared, num_items_in_batch=items)
        return loss

    def step_batches(self, count: int) -> list[tuple[Inputs, Any]]:
        """Return `count` training micro-batches on the training device, each with its `num_items_in_batch`.

        Batches of a small training set are returned again and again. Raises `DataError` on an empty dataset.
        """
        size = self.trainer._train_batch_size
        with together():  # before label terms are counted over all processes
            batches = self._batches(count * size, size, self.trainer.args.seed, lambda row: 1)
        prepared = [self.trainer._prepare_inputs(dict(batch)) for batch in batches]
        counted = [(batch, self.trainer._get_num_items_in_batch([batch], self.device)) for batch in prepared]
        return [counted[i % len(counted)] for i in range(count)]

    def training_step(self, model: nn.Module, batch: tuple[Inputs, Any]) -> None:
        """Run the trainer's own forward and backward of one micro-batch on `model`."""
        inputs, num_items = batch
        self.trainer.training_step(model, dict(inputs), num_items)

    def update_batches(self, count: int, held_back: int) -> list[list[tuple[Inputs, Any]]]:
        """Return the micro-batches of `count` optimizer steps, as this process of the run would train them.

        Rows come in an order drawn with the trainer's seed, not in that of its dataloader, which is left alone.
        Raises `DataError` where no row is left beside the `held_back` ones.
        """
        return trainer_data.update_batches(self.trainer, count, held_back)

    def heldout_batches(self, examples: int) -> HeldOut:
        """Return at most `examples` rows of the eval set (the first where there are several), else of the training set.

        Rows without a label are passed over. Of the training set they are the first of the sampled order, and a quarter of it
        at most.
        """
        return trainer_data.heldout_batches(self.trainer, examples, self._is_labelled)

    def heldout_loss(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """Return the loss of these inputs by which a trained model is judged: here `loss`."""
        return self.loss(model, inputs)

    @contextmanager
    def preserved(self) -> Iterator[None]:
        """Put the trainer's and its state's counters, metrics and lists back at exit."""
        trainer = self.trainer
        with ExitStack() as undo:
            for owner in (trainer, trainer.state, trainer.control):
                undo.enter_context(attributes_preserved(owner))
            if "current_gradient_accumulation_steps" not in vars(trainer):  # set by the first epoch
                trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
            yield

    def _batches(self, wanted: int, batch_size: int, seed: int, count: Callable[[Any], int]) -> list[Mapping[str, Any]]:
        dataset, collate = trainer_data.training_data(self.trainer)
        with random_state(seed):
            rows = holding(sampled_rows(dataset, seed), wanted, count, empty=self.nothing_left)
            return collated(rows, collate, batch_size)

    @property
    def nothing_left(self) -> str:
        """What to say where the training set holds no row."""
        return EMPTY

    def _is_labelled(self, batch: Inputs) -> bool:
        """Whether a batch has a label to learn from, or none that can be counted."""
        try:
            return len(read_documents(batch, read_labels_of(self.model, self.objective))[1]) > 0
        except DataError:
            return True


def _name(kind: type) -> str:
    package = kind.__module__.split(".", 1)[0]
    return f"{package}.{kind.__name__}" if package == "transformers" else f"{kind.__module__}.{kind.__name__}"
