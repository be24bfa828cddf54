"""How a model's loss reads its labels: by token, by row, as positions of an answer, or in a way that is not known.

Decided by the class whose `forward` computes the loss and by the model's configuration, never by comparing shapes.
Offers `Reading`, `read_labels_of` and `is_shifted`. Knows nothing of batches.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

Objective: TypeAlias = Literal["model", "next_token", "own"]
"""What a loss computes: the model's own loss; the cross-entropy of next tokens; something of a user's own."""

Kind: TypeAlias = Literal["token", "target", "row", "choice", "answer", "unknown"]
"""token     one label a token of the input
target    one label a token of an encoder-decoder's target
row       one label, or one vector of labels, a row
choice    one label a row of several texts
answer    `start_positions` and `end_positions` a row, and no `labels`
unknown   a loss of a user's own: examples are run one at a time, and labels are left as they are"""

ROWS = (
    "ForSequenceClassification", "ForImageClassification", "ForAudioClassification", "ForVideoClassification",
    "ForNextSentencePrediction",
)  # fmt: skip
TARGETS = ("ForConditionalGeneration", "MTModel", "EncoderDecoderModel")
BEAM_SEARCHED = ("XLNetForQuestionAnswering", "XLMForQuestionAnswering", "FlaubertForQuestionAnswering")
NGRAM = "ProphetNet"
"""Its loss predicts several tokens from one position."""


@dataclass(frozen=True)
class Reading:
    """How labels are read."""

    kind: Kind
    shifted: bool = False
    """Whether position t predicts the label at t + 1; of kind `token` alone."""
    numbers: bool | None = None
    """Of kind `row`: whether labels are numbers, of which none masks a row; None: where they are floating point."""
    two_streams: bool = False
    """Of kind `unknown`: whether the model is an encoder-decoder, whose labels are of the decoder."""

    def by_row(self, labels: Tensor) -> Tensor:
        """Return (rows,) bool, True where the row's label counts; -100 masks a class and is a number elsewhere."""
        numbers = self.numbers if self.numbers is not None else labels.is_floating_point()
        if numbers or labels.is_floating_point():
            return torch.ones(len(labels), dtype=torch.bool, device=labels.device)
        return (labels != -100).reshape(len(labels), -1).all(1)


NEXT_TOKEN = Reading("token", shifted=True)
EACH_TOKEN = Reading("token")


def read_labels_of(model: nn.Module, objective: Objective = "model") -> Reading:
    """Return how `objective` reads the labels of a batch of `model`."""
    base = bare(model)
    if objective != "model":
        return NEXT_TOKEN if objective == "next_token" else _unknown(base)
    head = next(kind for kind in type(base).__mro__ if "forward" in vars(kind))
    forward = _function(vars(head)["forward"])
    if not head.__module__.startswith("transformers.") or _function(base.forward) is not forward:
        return _unknown(base)
    asks = "loss_function" in forward.__code__.co_names  # transformers' loss of its head, not one in its own code
    return _by_function(base) if asks else _by_class(base, head.__name__)


def is_shifted(model: nn.Module) -> bool:
    """Whether position t predicts the token at t + 1: causal language models do, encoders' heads do not."""
    found = read_labels_of(model)
    kind = type(bare(model)).__name__
    return (
        found.shifted
        if found.kind != "unknown"
        else not kind.endswith((*ROWS, "ForMaskedLM", "ForTokenClassification"))
    )


def bare(model: nn.Module) -> Any:
    """Return the model without PEFT's wrapper."""
    from peft import PeftModel

    return model.get_base_model() if isinstance(model, PeftModel) else model


def is_encoder_decoder(base: nn.Module) -> bool:
    """Whether a bare model reads a source and writes a target."""
    config = getattr(base, "config", None)
    return bool(getattr(config, "is_encoder_decoder", False))


def _unknown(base: nn.Module) -> Reading:
    return Reading("unknown", two_streams=is_encoder_decoder(base))


def _function(forward: Any) -> Any:
    """Return the function as it was written, without the decorators and hooks around it."""
    found = inspect.unwrap(forward)
    return inspect.unwrap(found.__func__) if inspect.ismethod(found) else found


def _by_function(base: Any) -> Reading:
    from transformers.loss import loss_utils

    function = base.loss_function
    if function is loss_utils.ForCausalLMLoss:
        return _unknown(base) if is_encoder_decoder(base) else NEXT_TOKEN
    if function is loss_utils.ForMaskedLMLoss:
        return Reading("target") if is_encoder_decoder(base) else EACH_TOKEN
    if function is loss_utils.ForTokenClassification:
        return EACH_TOKEN
    if function is loss_utils.ForQuestionAnsweringLoss:
        return Reading("answer")
    return _of_rows(base) if function is loss_utils.ForSequenceClassificationLoss else _unknown(base)


def _by_class(base: Any, head: str) -> Reading:
    """Return the reading of a head with a loss in its own code, which its name tells; decoders' are of both sorts."""
    if head.endswith(ROWS):
        return _of_rows(base)
    if head.endswith("ForMultipleChoice"):
        return Reading("choice")
    if head.endswith(("ForTokenClassification", "ForMaskedLM")):
        return EACH_TOKEN
    if "ForQuestionAnswering" in head and head not in BEAM_SEARCHED:
        return Reading("answer")
    if is_encoder_decoder(base) and head.endswith(TARGETS) and not head.startswith(NGRAM):
        return Reading("target")
    return _unknown(base)


def _of_rows(base: Any) -> Reading:
    """Return the reading of a classifier, by its configuration as transformers' own loss reads it."""
    config = base.config
    if config.problem_type is None:
        return Reading("row", numbers=True if config.num_labels == 1 else None)
    return Reading("row", numbers=config.problem_type != "single_label_classification")
