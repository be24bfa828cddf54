"""docs/data-forms.md, the command line's part: every form of rows with every kind of model, as `layercard probe` takes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers as hf

from brought import BASE, ENCODERS, PICTURED, TEXT, TRANSLATORS, made, masked_tokenizer, save, write
from command_line import runner
from forms_table import WORKS, check_section, reason, rows_of, section

USER, ASSISTANT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
FORMS: dict[str, Callable[[int], dict[str, Any]]] = {
    "`text`": lambda i: {"text": f"text {i}"},
    "`prompt`, `completion`": lambda i: {"prompt": f"prompt {i}", "completion": "done"},
    "`prompt`, `completion` as messages": lambda i: {"prompt": [USER], "completion": [ASSISTANT]},
    "`messages`": lambda i: {"messages": [USER, ASSISTANT]},
    "`messages`, `tools`": lambda i: {"messages": [USER, ASSISTANT], "tools": [TOOL]},
    "`messages`, `chat_template_kwargs`": lambda i: {
        "messages": [USER, ASSISTANT], "chat_template_kwargs": {"thinking": False}
    },
    "`conversations` (`from`, `value`)": lambda i: {"conversations": [{"from": "user", "value": "hi"}]},
    "`messages`, `images`": lambda i: {"messages": [USER, ASSISTANT], "images": ["cat.png"]},
    "`prompt`, `chosen`, `rejected`": lambda i: {"prompt": "a", "chosen": "b", "rejected": "c"},
    "`text`, class number": lambda i: {"text": f"text {i}", "label": i % 2},
    "`text`, class name": lambda i: {"text": f"text {i}", "label": ("no", "yes")[i % 2]},
    "`text`, fraction": lambda i: {"text": f"text {i}", "label": i / 4 + 0.1},
    "`text`, several classes": lambda i: {"text": f"text {i}", "labels": [1, i % 2]},
    "`tokens`, `ner_tags`": lambda i: {"tokens": ["a", "b"], "ner_tags": [i % 2, 0]},
    "`question`, `context`, `answers`": lambda i: {"question": "a", "context": "b", "answers": {"text": ["b"]}},
}  # fmt: skip
MODELS: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "causal": (lambda: made(hf.AutoModelForCausalLM, hf.LlamaConfig(**TEXT)), ()),
    "vision-language": (
        lambda: made(hf.AutoModelForImageTextToText, PICTURED["llava"][1]()),
        ("--layers-path", "language_model.layers"),
    ),
    "encoder-decoder": (
        lambda: made(hf.AutoModelForSeq2SeqLM, TRANSLATORS["t5"]()),
        ("--layers-path", "encoder.block"),
    ),
    "base encoder": (lambda: made(hf.AutoModelForMaskedLM, ENCODERS["roberta"]()), ()),
    "classifier of 2": (lambda: made(hf.AutoModelForSequenceClassification, hf.BertConfig(**BASE)), ()),
    "regressor": (lambda: made(hf.AutoModelForSequenceClassification, hf.BertConfig(**BASE, num_labels=1)), ()),
    "tagger of 2": (lambda: made(hf.AutoModelForTokenClassification, hf.BertConfig(**BASE)), ()),
    "question answering": (lambda: made(hf.AutoModelForQuestionAnswering, hf.BertConfig(**BASE)), ()),
    "multiple choice": (lambda: made(hf.AutoModelForMultipleChoice, hf.BertConfig(**BASE)), ()),
}


def test_the_table_says_what_the_command_line_takes(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = runner(capfd)
    outcomes = rows_of(list(FORMS))
    files = {
        name: write(tmp_path / f"{number}.jsonl", [row(i) for i in range(6)])
        for number, (name, row) in enumerate(FORMS.items())
    }
    for model, (build, options) in MODELS.items():
        folder = save(tmp_path / model, build(), masked_tokenizer())
        for form, rows in files.items():
            ran = run("probe", folder, "--dataset", rows, "--probe-examples", 4, *options)
            assert "Traceback" not in ran.err
            assert "`layercard --debug" not in ran.err, f"{model} on {form}: {ran.err}"
            outcomes[form][model] = WORKS if ran.code == 0 else reason(ran.err.splitlines()[-1])
    check_section("the command line", section("The command line", "rows", outcomes))
