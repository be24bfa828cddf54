"""Texts are cut to the positions that a model really has, and the tokenizer's closing token is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from brought import DECODERS, ENCODERS, TRANSLATORS, closing_tokenizer, made, save, write
from command_line import Run, runner
from layercard.cli.positions import longest_input
from layercard.data import probe_data
from layercard.errors import SettingsError

FAMILY = ("roberta", "xlm-roberta", "camembert", "mpnet", "esm")
ALL: dict[str, tuple[Any, Callable[[], Any]]] = {
    **{name: (hf.AutoModelForMaskedLM, config) for name, config in ENCODERS.items()},
    **{name: (hf.AutoModelForCausalLM, config) for name, config in DECODERS.items()},
    **{name: (hf.AutoModelForSeq2SeqLM, config) for name, config in TRANSLATORS.items()},
}
NO_TABLE = {"esm rotary", "deberta-v2", "modernbert", "llama", "t5", "gptj", "mpt", "codegen"}
"""Rotary, relative and computed positions: nothing is looked up in a table of weights."""


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd)


def runs(model: Any, width: int) -> bool:
    ids = torch.randint(5, 110, (2, width))
    try:
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
    except (IndexError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("family", FAMILY)
def test_long_texts_are_cut_to_the_positions_behind_the_padding_index(run: Run, tmp_path: Path, family: str) -> None:
    model = made(hf.AutoModelForSequenceClassification, ENCODERS[family](num_labels=2))
    save(tmp_path, model, closing_tokenizer())
    rows = write(tmp_path / "rows.jsonl", [{"text": "x" * 80, "label": i % 2} for i in range(4)])
    ran = run("probe", tmp_path, "--dataset", rows, "--json")
    assert ran.code == 0, ran.err
    assert ran.document["probe"]["tokens"] == 4 * 64  # 66 positions, the first two of which stand for padding


def test_the_closing_token_is_kept_as_the_tokenizer_keeps_it(tmp_path: Path) -> None:
    tokenizer = closing_tokenizer()
    rows = write(tmp_path / "rows.jsonl", [{"text": "x" * 80, "label": i % 2} for i in range(2)])
    (batch,) = probe_data(str(rows), tokenizer, task="classification", max_length=64).batches
    wanted = tokenizer("x" * 80, truncation=True, max_length=64)["input_ids"]
    assert batch["input_ids"].tolist() == [wanted, wanted]
    assert wanted[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("family", sorted(ALL))
def test_a_model_runs_at_exactly_the_length_that_is_read(family: str) -> None:
    auto, config = ALL[family]
    model = made(auto, config()).train()
    longest = longest_input(model)
    assert runs(model, longest)
    if family not in NO_TABLE:
        assert not runs(model, longest + 1)
        with pytest.raises(SettingsError, match=f"positions for {longest} tokens"):
            longest_input(model, wanted=longest + 1)


def test_the_tokenizers_own_limit_counts_too() -> None:
    model = made(hf.AutoModelForMaskedLM, ENCODERS["bert"]())
    tokenizer = closing_tokenizer()
    assert longest_input(model, tokenizer) == 66  # its limit is a number too large to mean anything
    tokenizer.model_max_length = 20
    assert longest_input(model, tokenizer) == 20
    assert longest_input(model, tokenizer, wanted=50) == 50


@pytest.mark.parametrize("family", [*FAMILY, "gpt2"])
def test_plan_times_no_more_tokens_than_there_are_positions(run: Run, tmp_path: Path, family: str) -> None:
    config = DECODERS[family]() if family == "gpt2" else ENCODERS[family](num_labels=2)
    auto = hf.AutoModelForCausalLM if family == "gpt2" else hf.AutoModelForSequenceClassification
    save(tmp_path, made(auto, config))
    ran = run("plan", tmp_path, "--time-costs", "--json")
    assert ran.code == 0, ran.err
    assert "random weights and 64 tokens" in ran.document["costs"]


def test_more_than_the_positions_is_refused_when_asked_for(run: Run, tmp_path: Path) -> None:
    save(tmp_path, made(hf.AutoModelForMaskedLM, ENCODERS["roberta"]()))
    rows = write(tmp_path / "rows.jsonl", [{"text": "x" * 80}] * 4)
    ran = run("probe", tmp_path, "--dataset", rows, "--max-length", 65)
    assert ran.code == 2
    assert "RobertaForMaskedLM has positions for 64 tokens" in ran.words
