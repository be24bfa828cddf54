from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from layercard.data import Tokens
from layercard.errors import ProbeError
from layercard.study.evaluation import evaluate
from studies import BRIEF, subject

DECODERS = ("llama", "gemma3", "gpt2", "opt", "qwen3")


@torch.no_grad()
def mean_nll(model: Any, row: Tokens) -> tuple[float, float]:
    """The mean and the sum over an example's labels, from one pass over that example alone."""
    model.eval()
    labels = torch.tensor(row["labels"])
    logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].float()
    scores = torch.log_softmax(logits, -1)
    known = [-scores[i - 1, labels[i]].item() for i in range(1, len(labels)) if labels[i] != -100]
    return sum(known) / len(known), sum(known)


@pytest.mark.parametrize("family", DECODERS)
def test_choices_are_scored_as_one_pass_over_each_would(tmp_path: Path, family: str) -> None:
    subject_ = subject(tmp_path, family=family)
    losses, right = [], []
    for example in subject_.heldout:
        per_byte = [mean_nll(subject_.base, c)[1] / n for c, n in zip(example.choices, example.lengths, strict=True)]
        losses.append(mean_nll(subject_.base, example.tokens)[0])
        right.append(per_byte.index(min(per_byte)) == example.answer)
    found = evaluate(subject_.base, subject_.heldout, subject_.tokenizer, "causal", batch_size=2)
    assert found["heldout_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert found["accuracy"] == sum(right) / len(right)


@pytest.mark.parametrize("shared", [1, 2, 5])
def test_choices_that_share_few_tokens_are_scored_alike(tmp_path: Path, shared: int) -> None:
    subject_ = subject(tmp_path)
    first = subject_.heldout[0]
    drop = next(i for i, label in enumerate(first.tokens["labels"]) if label != -100) - shared
    short = [{name: values[drop:] for name, values in choice.items()} for choice in first.choices]
    example = replace(first, tokens=short[first.answer or 0], choices=tuple(short))
    found = evaluate(subject_.base, [example], subject_.tokenizer, "causal", batch_size=2)
    assert found["heldout_loss"] == pytest.approx(mean_nll(subject_.base, example.tokens)[0], rel=1e-4)


def test_the_loss_is_a_mean_over_examples_whatever_the_batch_size(tmp_path: Path) -> None:
    subject_ = subject(tmp_path)
    plain = [replace(example, choices=()) for example in subject_.heldout]
    expected = sum(mean_nll(subject_.base, e.tokens)[0] for e in plain) / len(plain)
    for size in (1, 4):
        found = evaluate(subject_.base, plain, subject_.tokenizer, "causal", batch_size=size)
        assert found == {"heldout_loss": pytest.approx(expected, rel=1e-4)}


def test_a_classifier_is_judged_by_its_labels(tmp_path: Path) -> None:
    subject_ = subject(tmp_path, family="bert")
    found = evaluate(subject_.base, subject_.heldout, subject_.tokenizer, "classification", batch_size=3)
    subject_.base.eval()
    losses, right = [], []
    for example in subject_.heldout:
        with torch.no_grad():
            logits = subject_.base(input_ids=torch.tensor([example.tokens["input_ids"]])).logits[0]
        losses.append(-torch.log_softmax(logits, -1)[example.tokens["labels"]].item())
        right.append(int(logits.argmax()) == example.tokens["labels"])
    assert found["heldout_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert found["accuracy"] == sum(right) / len(right)


def test_the_model_is_left_in_its_mode_and_a_broken_one_is_refused(tmp_path: Path) -> None:
    subject_ = subject(tmp_path, settings=replace(BRIEF, heldout_examples=2))
    subject_.base.train()
    evaluate(subject_.base, subject_.heldout, subject_.tokenizer, "causal", batch_size=2)
    assert subject_.base.training
    next(subject_.base.parameters()).data.fill_(float("nan"))
    with pytest.raises(ProbeError, match="held-out loss"):
        evaluate(subject_.base, subject_.heldout, subject_.tokenizer, "causal", batch_size=2)
