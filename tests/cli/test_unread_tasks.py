"""Question answering and multiple choice: refused by name where rows are read, and what the refusal advises works."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers as hf

from brought import BASE, made, save, write
from command_line import runner

HEADS = {
    "Question answering": (
        hf.AutoModelForQuestionAnswering,
        {"question": "a", "context": "b", "answers": {"text": ["b"], "answer_start": [0]}},
    ),
    "Multiple choice": (hf.AutoModelForMultipleChoice, {"prompt": "a", "choices": ["b", "c"], "label": 0}),
}


@pytest.mark.parametrize("name", HEADS)
def test_rows_are_refused_by_name_and_the_advice_works(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    auto, row = HEADS[name]
    model = save(tmp_path / "model", made(auto, hf.BertConfig(**BASE)))
    rows, run = write(tmp_path / "rows.jsonl", [row] * 4), runner(capfd)
    for command in (("probe",), ("plan", "--lora-layers", "high")):
        ran = run(*command, model, "--dataset", rows)
        assert ran.code == 1
        assert f"{name} is not read from a dataset here" in ran.words
        assert '`layercard.place(trainer, lora_layers="high")`' in ran.words  # tests/cases/test_21 trains so
        assert "`layercard plan MODEL --lora-layers last`" in ran.words
    planned = run("plan", model, "--lora-layers", "last", "--no-time-costs", "--json")
    assert planned.code == 0, planned.err
    assert planned.document["placement"]["layers"] == [1]
