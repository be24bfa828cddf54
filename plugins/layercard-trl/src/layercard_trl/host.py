"""What the pipeline needs of TRL's trainers: `SFTHost` and `DPOHost`, and which trainers they answer for.

Both give the language modelling NLL of the trainer's own batches through the trainer's fused head, so logits are never
held whole. They know nothing of layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from layercard.errors import HostError
from layercard.hosts.plain import PlainHost
from layercard.hosts.rows import EMPTY
from layercard_trl import compat

if TYPE_CHECKING:
    from torch import Tensor, nn

    from layercard.probing.labels import Objective

    Inputs = Mapping[str, Any]

IGNORED = -100
SUPPORTED = "Supported are TRL's SFTTrainer and DPOTrainer, their subclasses, and a plain transformers.Trainer."


def locate(trainer: Any) -> PlainHost | None:
    """Return the host of a TRL trainer, None for a trainer that is not TRL's.

    The first class of TRL's own decides, so a user's subclass is taken for what it extends, and a TRL trainer that
    extends `SFTTrainer` with another objective is not. Raises `HostError` for TRL's other trainers.
    """
    kind = trl_class(trainer)
    if kind is None:
        return None
    if kind not in HOSTS:
        raise HostError(
            f"`{kind}` cannot be placed into: its loss is not the likelihood of examples that the probe can read. "
            f"{SUPPORTED} Choose the layers beforehand with `layercard plan`, and give them to PEFT as "
            "`LoraConfig(layers_to_transform=[...])`."
        )
    return HOSTS[kind](trainer)


def trl_class(trainer: Any) -> str | None:
    """Return the name of the class of TRL's own that `trainer` is an instance of, None where there is none."""
    return next((c.__name__ for c in type(trainer).__mro__ if c.__module__.split(".", 1)[0] == "trl"), None)


class SFTHost(PlainHost):
    """TRL's `SFTTrainer`: padded, packed and padding-free batches, whatever its labels mask."""

    def __init__(self, trainer: Any) -> None:
        super().__init__(trainer)
        self.name = f"trl.{trl_class(trainer)}"

    def loss(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """Return the NLL averaged over the batch's label terms, whatever loss the trainer trains with.

        Router auxiliary loss is left out, and neither the trainer's metrics nor its token counter moves.
        """
        trainer = self.trainer
        with trainer.compute_loss_context_manager(), trainer.accelerator.autocast():
            log_probs, counted = compat.token_log_probs(model, trainer._prepare_inputs(dict(inputs)))
        return -log_probs.sum() / counted.sum()  # NaN where nothing counts: such rows are left out, not lost by 0

    @property
    def objective(self) -> Objective:
        """The probe reads next tokens, whatever the trainer's loss."""
        return "next_token"

    @property
    def logits(self) -> Literal["whole", "tiled"] | None:
        """TRL's fused head holds a tile of them."""
        return "tiled"

    @property
    def judged_by(self) -> str:
        """The guard's held-out loss, which a `compute_loss_func` or another `loss_type` of the trainer does not change."""
        return "negative log-likelihood of the labels"

    @property
    def nothing_left(self) -> str:
        """What to say where the training set holds no row: TRL drops those that `max_length` left without a label."""
        args = self.trainer.args
        if args.max_length is None or args.packing:
            return super().nothing_left
        return (
            "The training set has no row left. TRL drops every row in which no label is left within `max_length` "
            f"({args.max_length}): a prompt as long as that leaves no completion, and with `assistant_only_loss` a chat template "
            "without generation marks labels nothing. Raise `max_length`, or give a training set with examples."
        )


class DPOHost(SFTHost):
    """TRL's `DPOTrainer`: the probe reads the chosen responses as language modelling examples.

    At B = 0 policy and reference are one model, so every pair has the same weight in the preference loss; what the
    layers have to learn shows in the responses that are preferred.
    """

    def probe_batches(self, examples: int, batch_size: int | None, seed: int) -> Iterator[Inputs]:
        """Yield the chosen half of collated preference batches, labelled on the response."""
        if self.trainer._is_vision_dataset:
            raise HostError(
                "The DPOTrainer's dataset holds images, and the probe reads preference pairs of text. Choose the layers "
                "beforehand with `layercard plan` on text, or by depth with `lora_layers: uniform`."
            )
        for batch in super().probe_batches(examples, batch_size, seed):
            yield chosen_only(batch)

    @property
    def logits(self) -> None:
        """A step runs the reference model as well."""
        return None

    def heldout_loss(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """Return the preference loss of these pairs, the trainer's own: training may lower it and raise the NLL."""
        return PlainHost.loss(self, model, inputs)

    @property
    def judged_by(self) -> str:
        """What `heldout_loss` is."""
        return "the trainer's own preference loss"

    @property
    def nothing_left(self) -> str:
        """What to say where the training set holds no row."""
        return EMPTY


def chosen_only(batch: Inputs) -> dict[str, Tensor]:
    """Return the first half of a preference batch, (pairs, width), with the prompt and the padding masked in `labels`."""
    pairs = batch["input_ids"].shape[0] // 2
    ids, completion = batch["input_ids"][:pairs], batch["completion_mask"][:pairs]
    return {
        "input_ids": ids,
        "attention_mask": batch["attention_mask"][:pairs],
        "labels": ids.masked_fill(completion == 0, IGNORED),
    }


HOSTS: dict[str, type[PlainHost]] = {"SFTTrainer": SFTHost, "DPOTrainer": DPOHost}
