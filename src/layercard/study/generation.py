"""Greedy answers to held-out prompts, and BLEU, chrF, TER (sacrebleu) and ROUGE-L (rouge-score) against references."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from layercard.data import pad_id
from layercard.errors import DataError
from layercard.study.examples import HeldOut

DIRECTIONS = {"bleu": "higher", "chrf": "higher", "ter": "lower", "rouge_l": "higher"}


def with_references(examples: Sequence[HeldOut], count: int) -> list[HeldOut]:
    """Return the first `count` examples that have references; raise `DataError` where they are wanted and none has."""
    found = [e for e in examples if e.references and e.prompt is not None][:count]
    if count and not found:
        raise DataError(
            "No held-out example has a `prompt` and `references`, which texts are compared with. Add a list of texts in the "
            "column `references`, or leave `--generate` out."
        )
    return found


@torch.no_grad()
def answers(
    model: nn.Module, examples: Sequence[HeldOut], tokenizer: Any, *, batch_size: int, max_new_tokens: int
) -> list[str]:
    """Return what the model writes after each prompt, up to the end of the sequence."""
    training = model.training
    model.eval()
    written: list[str] = []
    try:
        for start in range(0, len(examples), batch_size):
            prompts = [e.prompt or "" for e in examples[start : start + batch_size]]
            written += _continued(model, prompts, tokenizer, max_new_tokens)
    finally:
        model.train(training)
    return written


def _continued(model: Any, prompts: Sequence[str], tokenizer: Any, max_new_tokens: int) -> list[str]:
    pad, device = pad_id(tokenizer), next(model.parameters()).device
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    width = max(len(row) for row in ids)
    inputs = torch.tensor([[pad] * (width - len(row)) + row for row in ids], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids], device=device)
    out = model.generate(
        input_ids=inputs,
        attention_mask=mask,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=pad,
        eos_token_id=tokenizer.eos_token_id,
    )
    return [text.strip() for text in tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)]


def text_metrics(written: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return corpus BLEU, chrF and TER in percent, and the mean of the best ROUGE-L F1 of each text in [0, 1].

    Raises `DataError` where sacrebleu or rouge-score is not installed.
    """
    try:
        import sacrebleu
        from rouge_score.rouge_scorer import RougeScorer
    except ModuleNotFoundError as error:
        raise DataError(
            f"Comparing texts needs the package `{error.name}`, which is not installed. Install it with "
            "`pip install 'layercard[study]'`, or leave `--generate` out."
        ) from None
    most = max(len(texts) for texts in references)
    streams: Any = [[texts[i] if i < len(texts) else None for texts in references] for i in range(most)]
    rouge = RougeScorer(["rougeL"])
    best = [
        max(rouge.score(text, given)["rougeL"].fmeasure for text in texts)
        for given, texts in zip(written, references, strict=True)
    ]
    return {
        "bleu": sacrebleu.corpus_bleu(list(written), streams).score,
        "chrf": sacrebleu.corpus_chrf(list(written), streams).score,
        "ter": sacrebleu.corpus_ter(list(written), streams).score,
        "rouge_l": sum(best) / len(best),
    }
