"""What a model reaches on held-out examples: loss, accuracy by likelihood over choices, accuracy of labels.

`heldout_loss` is the mean over examples of the mean negative log-likelihood of an example's label tokens, in nats. An
example's choices share one pass over the tokens that they have in common.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn

from layercard.data import IGNORED, Task, Tokens, collate, pad_id
from layercard.errors import ProbeError
from layercard.probing.labels import is_shifted
from layercard.study.examples import HeldOut


@dataclass(frozen=True)
class Judged:
    """Sums over one group of examples."""

    losses: tuple[float, ...]
    right: tuple[bool, ...] = ()


@torch.no_grad()
def evaluate(
    model: nn.Module, examples: Sequence[HeldOut], tokenizer: Any, task: Task, *, batch_size: int
) -> dict[str, float]:
    """Return `heldout_loss` and, where examples have choices or labels, `accuracy`; `model` is in its mode again after.

    Raises `ProbeError` where the loss is not finite.
    """
    training = model.training
    model.eval()
    try:
        judged = list(_judged(model, examples, tokenizer, task, batch_size))
    finally:
        model.train(training)
    losses = [loss for group in judged for loss in group.losses]
    right = [hit for group in judged for hit in group.right]
    mean = math.fsum(losses) / len(losses)
    if not math.isfinite(mean):
        raise ProbeError(
            f"The held-out loss is {mean}. Lower `learning_rate`, or load the model in bfloat16 or float32."
        )
    return {"heldout_loss": mean} | ({"accuracy": sum(right) / len(right)} if right else {})


def _judged(model: nn.Module, examples: Sequence[HeldOut], tokenizer: Any, task: Task, batch_size: int) -> Any:
    pad, device = pad_id(tokenizer), next(model.parameters()).device
    for example in examples:
        if example.choices:
            yield _choose(model, example, pad, device)
    plain = sorted((e.tokens for e in examples if not e.choices), key=lambda row: len(row["input_ids"]))
    for start in range(0, len(plain), batch_size):
        batch = {n: v.to(device) for n, v in collate(plain[start : start + batch_size], pad).items()}
        labels = batch.pop("labels")
        logits = model(**batch).logits
        yield _classified(logits, labels) if task == "classification" else _predicted(model, logits, labels)


def _classified(logits: Tensor, labels: Tensor) -> Judged:
    if logits.shape[-1] == 1:  # a regression
        return Judged(tuple((logits[:, 0].float() - labels.float()).square().tolist()))
    losses = F.cross_entropy(logits.float(), labels, reduction="none")
    return Judged(tuple(losses.tolist()), tuple((logits.argmax(-1) == labels).tolist()))


def _predicted(model: nn.Module, logits: Tensor, labels: Tensor) -> Judged:
    if is_shifted(model):
        logits, labels = logits[:, :-1], labels[:, 1:]
    return Judged(tuple(_mean_nll(logits, labels).tolist()))


def _nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Return (rows, width) the negative log-likelihood of each label, 0 where it is ignored."""
    flat = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
    return flat.view_as(labels)


def _mean_nll(logits: Tensor, labels: Tensor) -> Tensor:
    return _nll(logits, labels).sum(1) / (labels != IGNORED).sum(1)


def _choose(model: nn.Module, example: HeldOut, pad: int, device: torch.device) -> Judged:
    """Score every choice by its log-likelihood per byte; the loss is that of the right one."""
    assert example.answer is not None
    before = max(0, _shared(example.choices) - 1)  # the last shared token predicts the first of the rest
    rest = collate([_after(choice, before) for choice in example.choices], pad)
    rows, mask, cache = len(example.choices), rest["attention_mask"], None
    if before > 0:
        cache = _cached(model, torch.tensor([example.choices[0]["input_ids"][:before]], device=device))
        cache.batch_repeat_interleave(rows)
        mask = torch.cat([torch.ones(rows, before, dtype=torch.long), mask], dim=1)
    inputs = {"input_ids": rest["input_ids"].to(device), "attention_mask": mask.to(device)}
    logits = model(**inputs, **{_cache_name(_causal(model)): cache}).logits[:, :-1]
    labels = rest["labels"][:, 1:].to(device)
    nll = _nll(logits, labels)
    per_byte = nll.sum(1) / torch.tensor(example.lengths, device=device)
    mean = nll.sum(1) / (labels != IGNORED).sum(1)
    return Judged((float(mean[example.answer]),), (int(per_byte.argmin()) == example.answer,))


def _cached(model: nn.Module, tokens: Tensor) -> Any:
    """Return the keys and values of (1, length) `tokens`; the head is not run, for on one row CPUs take long over it."""
    backbone = _causal(model).base_model
    return backbone(input_ids=tokens, use_cache=True)[_cache_name(backbone)]


def _causal(model: nn.Module) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _cache_name(model: nn.Module) -> str:
    """Return what the model calls keys and values; transformers 5.24 gave them another name."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def _shared(choices: Sequence[Tokens]) -> int:
    """Return how many first tokens all choices share, none of them to be predicted, and one left to predict from."""
    limit = min(next(i for i, label in enumerate(c["labels"]) if label != IGNORED) for c in choices)
    first = choices[0]["input_ids"]
    return next((i for i in range(limit) if any(c["input_ids"][i] != first[i] for c in choices)), limit)


def _after(choice: Tokens, start: int) -> Tokens:
    return {"input_ids": choice["input_ids"][start:], "labels": choice["labels"][start:]}
