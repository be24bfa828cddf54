"""Encoder-decoders are loaded, planned and probed by the command line, on prompts and completions."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers as hf

from brought import TRANSLATORS, closing_tokenizer, made, save, write
from command_line import Run, runner
from layercard.data import IGNORED, probe_data

PAIRS = [{"prompt": f"translate {i}", "completion": "abcd"} for i in range(6)]
STACKS = {"t5": ("encoder.block", "decoder.block"), "bart": ("encoder.layers", "decoder.layers")}


# a decoder's modules that read the encoder have no energy by the decoder's tokens
pytestmark = pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning")


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd)


@pytest.mark.parametrize(("family", "path"), [(name, path) for name, paths in STACKS.items() for path in paths])
def test_plan_and_probe_take_either_stack(run: Run, tmp_path: Path, family: str, path: str) -> None:
    save(tmp_path / "model", made(hf.AutoModelForSeq2SeqLM, TRANSLATORS[family]()))
    planned = run("plan", tmp_path / "model", "--layers-path", path, "--json")
    assert planned.code == 0, planned.err
    assert "costs timed on 2 layers" in planned.document["costs"]
    rows = write(tmp_path / "rows.jsonl", PAIRS)
    probed = run("probe", tmp_path / "model", "--dataset", rows, "--layers-path", path, "--json")
    assert probed.code == 0, probed.err
    assert probed.document["probe"]["examples"] == len(PAIRS)
    assert len(probed.document["scores"]["resnorm"]["importance"]) == 3


@pytest.mark.parametrize("family", sorted(TRANSLATORS))
def test_every_family_is_loaded_by_its_own_class(run: Run, tmp_path: Path, family: str) -> None:
    save(tmp_path, made(hf.AutoModelForSeq2SeqLM, TRANSLATORS[family]()))
    words = run("plan", tmp_path).words
    assert "has 2 stacks of layers" in words


def test_sources_and_targets_are_tokenized_apart_and_padded_apart(tmp_path: Path) -> None:
    tokenizer = closing_tokenizer()
    rows = [{"prompt": "x" * 5, "completion": "ab"}, {"prompt": "x", "completion": "abcdef"}]
    source = str(write(tmp_path / "rows.jsonl", rows))
    (batch,) = probe_data(source, tokenizer, task="seq2seq", max_length=6).batches
    for i, row in enumerate(rows):
        inputs = tokenizer(row["prompt"], truncation=True, max_length=6)["input_ids"]
        targets = tokenizer(text_target=row["completion"], truncation=True, max_length=6)["input_ids"]
        assert batch["input_ids"][i][batch["attention_mask"][i] == 1].tolist() == inputs
        assert batch["labels"][i][batch["labels"][i] != IGNORED].tolist() == targets
        assert (inputs[-1], targets[-1]) == (tokenizer.eos_token_id,) * 2
    assert (batch["input_ids"].shape, batch["labels"].shape) == ((2, 6), (2, 6))


def test_text_alone_is_refused_with_what_works(run: Run, tmp_path: Path) -> None:
    save(tmp_path / "model", made(hf.AutoModelForSeq2SeqLM, TRANSLATORS["t5"]()))
    rows = write(tmp_path / "rows.jsonl", [{"text": "a"}] * 4)
    words = run("probe", tmp_path / "model", "--dataset", rows, "--layers-path", "decoder.block").words
    assert "A sequence-to-sequence model is probed on `prompt` and `completion`" in words
