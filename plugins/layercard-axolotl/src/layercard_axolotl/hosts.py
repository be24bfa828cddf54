"""What the pipeline needs of Axolotl's trainers: a host for each, and which trainers they answer for.

The probe reads documents: rows of the tokenized set, packed as training packs them, or the responses that a preference
set wants. Knows nothing of layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

from layercard.errors import DataError, HostError
from layercard.hosts import trainer_data
from layercard.hosts.own_loss import has_own_loss
from layercard.hosts.plain import PlainHost
from layercard.hosts.rows import holding, sampled_rows
from layercard.random_state import random_state
from layercard_axolotl import compat

if TYPE_CHECKING:
    from torch import Tensor, nn

    from layercard.probing.labels import Objective

    Inputs = Mapping[str, Any]

IGNORED = -100
SUPPORTED = "Supported are Axolotl's trainers for supervised fine-tuning, `rl: dpo`, `rl: ipo` and `rl: kto`."


def locate(trainer: Any) -> PlainHost | None:
    """Return the host of an Axolotl trainer, None for a trainer that is not Axolotl's.

    The first class of Axolotl's own decides, so a user's subclass is taken for what it extends, and one of Axolotl's that
    extends `AxolotlTrainer` with another objective is not. Raises `HostError` for those.
    """
    kind = next((c for c in type(trainer).__mro__ if c.__module__.split(".", 1)[0] == "axolotl"), None)
    if kind is None:
        return None
    if kind.__name__ not in HOSTS:
        raise HostError(
            f"`{kind.__name__}` cannot be placed into: its objective is not one that the probe can read. {SUPPORTED}"
        )
    return HOSTS[kind.__name__](trainer)


class AxolotlHost(PlainHost):
    """`AxolotlTrainer`: padded, flattened and multipacked batches."""

    def __init__(self, trainer: Any) -> None:
        super().__init__(trainer)
        compat.ask_for_columns_once(trainer)

    def loss(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """Return the trainer's own loss; its token counter, which sums over ranks, is off."""
        with _without_token_counter(self.trainer.args):
            return super().loss(model, inputs)

    @property
    def objective(self) -> Objective:
        """Axolotl trains next tokens, also where a kernel stands for the model's own loss."""
        return "own" if has_own_loss(self.trainer) else "next_token"

    def probe_batches(self, examples: int, batch_size: int | None, seed: int) -> Iterator[Inputs]:
        """Yield collated training batches holding `examples` documents in all, packed where training packs."""
        if not self._packs:
            return super().probe_batches(examples, batch_size, seed)
        return iter(self._packed(examples, batch_size or self._bins, seed))

    def step_batches(self, count: int) -> list[tuple[Inputs, Any]]:
        """Return `count` training micro-batches, packs as full as training's."""
        if not self._packs:
            return super().step_batches(count)
        trainer = self.trainer
        batches = self._packed(None, self._bins, trainer.args.seed, most=count)
        prepared = [trainer._prepare_inputs(dict(batch)) for batch in batches]
        counted = [(batch, trainer._get_num_items_in_batch([batch], self.device)) for batch in prepared]
        return [counted[i % len(counted)] for i in range(count)]

    def update_batches(self, count: int, held_back: int) -> list[list[tuple[Inputs, Any]]]:
        """Return the micro-batches of `count` optimizer steps, packs as full as training's."""
        if not self._packs:
            return super().update_batches(count, held_back)
        most = trainer_data.micro_batches(self.trainer, count)
        batches = self._packed(None, self._bins, self.trainer.args.seed, most=most, skipped=held_back)
        if not batches:
            raise DataError(f"All {held_back} rows of the training set are held back, so nothing is left to train on.")
        return trainer_data.dealt(self.trainer, batches, count)

    @property
    def nothing_left(self) -> str:
        """What to say where the training set holds no row: Axolotl drops those that are too long."""
        return no_row_left(self.trainer.args.max_seq_length)

    @property
    def _packs(self) -> bool:
        args = self.trainer.args
        return bool(args.sample_packing) and not args.pretraining

    @property
    def _bins(self) -> int:
        """Packs in a batch: several rows, or one row as long as all of them."""
        args = self.trainer.args
        return int(args.per_device_train_batch_size) if args.multipack_real_batches else 1

    @property
    def _capacity(self) -> int:
        """Most tokens in a pack."""
        args = self.trainer.args
        rows = 1 if args.multipack_real_batches else int(args.per_device_train_batch_size)
        return rows * int(args.max_seq_length)

    def _packed(
        self, documents: int | None, bins: int, seed: int, *, most: int | None = None, skipped: int = 0
    ) -> list[Inputs]:
        """Return collated batches of `bins` packs: all that hold `documents` rows, or the first `most` batches."""
        trainer = self.trainer
        with random_state(seed):
            rows: Iterable[Any] = islice(sampled_rows(compat.packing_columns(trainer), seed), skipped, None)
            if documents is not None:
                rows = holding(rows, documents, lambda row: 1, empty=self.nothing_left)
            packs = list(_packs(rows, self._capacity, None if most is None else most * bins))
            groups = [packs[i : i + bins] for i in range(0, len(packs), bins)]
            if most is not None and len(groups) > 1 and len(groups[-1]) < bins:
                groups.pop()  # training has no smaller last batch
            return [trainer.data_collator(group) for group in groups]


def no_row_left(sequence_len: int) -> str:
    """What to say of a training set without rows."""
    return (
        f"The training set has no row left. Axolotl drops every row that is longer than `sequence_len` ({sequence_len}), the "
        "words of the prompt's template among its tokens. Raise `sequence_len`, or name `datasets` that hold rows."
    )


def _packs(rows: Iterable[Any], capacity: int, most: int | None) -> Iterator[list[Any]]:
    """Yield at most `most` lists of rows, each filled in order until the next row would not fit."""
    pack: list[Any] = []
    held = given = 0
    for row in rows:
        size = len(row["input_ids"])
        if pack and held + size > capacity:
            yield pack
            given, pack, held = given + 1, [], 0
            if given == most:
                return
        pack.append(dict(row))
        held += size
    if pack:
        yield pack


@contextmanager
def _without_token_counter(args: Any) -> Iterator[None]:
    found, args.include_tkps = args.include_tkps, False
    try:
        yield
    finally:
        args.include_tkps = found


class PreferenceHost(PlainHost):
    """Trainers that extend TRL's preference trainers: the probe reads wanted responses as language modelling examples.

    At B = 0 policy and reference are one model, so every example has the same weight in the preference loss.
    """

    def loss(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """Return the NLL averaged over the responses' tokens, without touching the trainer's metrics."""
        trainer = self.trainer
        with trainer.compute_loss_context_manager(), trainer.accelerator.autocast():
            loss: Tensor = model(**trainer._prepare_inputs(dict(inputs)), use_cache=False).loss
        return loss

    @property
    def objective(self) -> Objective:
        """The probe reads next tokens of responses, whatever the preference loss."""
        return "next_token"

    @property
    def judged_by(self) -> str:
        """What `heldout_loss` is."""
        return "the trainer's own preference loss"

    @property
    def logits(self) -> None:
        """A step runs more than its rows: pairs, and a reference model."""
        return None

    def heldout_loss(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """Return the trainer's own preference loss: training may lower it and raise the NLL of the responses."""
        return super().loss(model, inputs)


class DPOHost(PreferenceHost):
    """`AxolotlDPOTrainer`: pairs, the chosen half of a batch first."""

    def probe_batches(self, examples: int, batch_size: int | None, seed: int) -> Iterator[Inputs]:
        """Yield the chosen half of collated batches, labelled on the response."""
        for batch in super().probe_batches(examples, batch_size, seed):
            pairs = batch["input_ids"].shape[0] // 2
            yield _labelled({name: batch[name][:pairs] for name in _TEXT})


class KTOHost(PreferenceHost):
    """`AxolotlKTOTrainer`: single responses, wanted or not."""

    def probe_batches(self, examples: int, batch_size: int | None, seed: int) -> Iterator[Inputs]:
        """Yield the wanted responses of collated batches."""
        size = batch_size or self.trainer.args.per_device_train_batch_size
        for batch in self._batches(examples, size, seed, lambda row: int(bool(row["label"]))):
            wanted = batch["label"].bool()
            if bool(wanted.any()):
                yield _labelled({name: batch[name][wanted] for name in _TEXT})


_TEXT = ("input_ids", "attention_mask", "completion_mask")


def _labelled(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the batch with prompt and padding masked in `labels`, (rows, width)."""
    ids = batch["input_ids"]
    labels = ids.masked_fill(batch["completion_mask"] == 0, IGNORED)
    return {"input_ids": ids, "attention_mask": batch["attention_mask"], "labels": labels}


HOSTS: dict[str, type[PlainHost]] = {
    "AxolotlTrainer": AxolotlHost,
    "AxolotlDPOTrainer": DPOHost,
    "AxolotlKTOTrainer": KTOHost,
}
