from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from layercard.errors import DataError
from layercard.study.generation import answers, text_metrics, with_references
from layercard.study.training import judge
from studies import BRIEF, subject


def test_batches_with_padding_answer_as_single_prompts_do(tmp_path: Path) -> None:
    s = subject(tmp_path)
    prompts = [replace(e, prompt=f"{'x' * i}{e.prompt}") for i, e in enumerate(s.heldout[:4])]
    together = answers(s.base, prompts, s.tokenizer, batch_size=4, max_new_tokens=6)
    alone = answers(s.base, prompts, s.tokenizer, batch_size=1, max_new_tokens=6)
    assert together == alone
    ids = torch.tensor([s.tokenizer(prompts[0].prompt)["input_ids"]])
    for _ in range(6):  # greedy decoding by hand
        following = s.base.eval()(input_ids=ids).logits[0, -1].argmax()
        ids = torch.cat([ids, following.view(1, 1)], dim=1)
        if int(following) == s.tokenizer.eos_token_id:
            break
    written = s.tokenizer.decode(ids[0, len(s.tokenizer(prompts[0].prompt)["input_ids"]) :], skip_special_tokens=True)
    assert alone[0] == written.strip()


def test_a_text_that_is_one_of_its_references_is_perfect() -> None:
    references = [["the cat sat on the mat", "a cat sat there"], ["it rains in the hills today"]]
    same = text_metrics(["the cat sat on the mat", "it rains in the hills today"], references)
    assert same == {"bleu": pytest.approx(100), "chrf": pytest.approx(100), "ter": 0, "rouge_l": 1}
    other = text_metrics(["dogs bark", "never"], references)
    assert other["bleu"] < 1 and other["ter"] > same["ter"] and other["rouge_l"] == 0


def test_texts_are_judged_where_that_is_wanted(tmp_path: Path) -> None:
    s = subject(tmp_path, settings=replace(BRIEF, generate=2, max_new_tokens=4))
    assert set(judge(s.base, s)) == {"heldout_loss", "accuracy", "bleu", "chrf", "ter", "rouge_l"}


def test_wanting_texts_without_references_is_refused(tmp_path: Path) -> None:
    bare = [replace(example, references=()) for example in subject(tmp_path).heldout]
    assert with_references(bare, 0) == []
    with pytest.raises(DataError, match="references"):
        with_references(bare, 2)
