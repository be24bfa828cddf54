"""The tokens that commands score are those that a real `SFTTrainer` trains on, for every form of data that it takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ProcessorMixin
from trl import SFTConfig, SFTTrainer

from layercard.data import teaches, tokenize_records
from layercard.data.chat import tokenize_by_template
from layercard.errors import DataError
from layercard.plugins import build_manager, extensions
from layercard.records import sample_records
from tiny import tiny_model, tiny_tokenizer

TRL = extensions().tokenize_examples
"""What this package answers, being installed."""
TEMPLATE = (
    "{% if shout %}{{ 'LOUD ' }}{% endif %}{% if tools %}{{ 'TOOLS ' + tools | tojson + eos_token }}{% endif %}"
    "{% for m in messages %}{{ m['role'] + ': ' }}{% if m.content is string %}{{ m.content }}"
    "{% elif m.content %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}"
    "{% for call in m.tool_calls or [] %}{{ 'CALL ' + call | tojson }}{% endfor %}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"properties": {"city": {"type": "string"}}}},
}
ADD = {"type": "function", "function": {"name": "add", "parameters": {"properties": {"a": {"type": "integer"}}}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
USER, ASSISTANT = {"role": "user", "content": "how is it"}, {"role": "assistant", "content": "fine"}
TALK = [
    USER,
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "name": "weather", "content": "sun"},
    ASSISTANT,
]
PARTS = [
    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "c"}]},
]
FORMS: dict[str, list[dict[str, Any]]] = {
    "text": [{"text": "some words"}, {"text": "more<eos>"}],
    "prompt and completion": [
        {"prompt": "one and one: ", "completion": "two"},
        {"prompt": "x", "completion": "y<eos>"},
    ],
    "prompt, completion and more": [{"prompt": "a", "completion": "b", "messages_seen": 3, "source": "x"}] * 2,
    "messages": [{"messages": [USER, ASSISTANT]}, {"messages": [USER, ASSISTANT, USER, ASSISTANT]}],
    "messages as prompt and completion": [{"prompt": [USER], "completion": [ASSISTANT]}] * 2,
    "tools": [{"messages": TALK, "tools": [WEATHER]}, {"messages": [USER, ASSISTANT], "tools": [ADD, WEATHER]}],
    "tools as text": [
        {"messages": TALK, "tools": json.dumps([WEATHER])},
        {"messages": TALK, "tools": json.dumps([ADD])},
    ],
    "some rows without tools": [{"messages": TALK, "tools": [WEATHER]}, {"messages": [USER, ASSISTANT], "tools": None}],
    "tools with prompt and completion": [{"prompt": TALK[:3], "completion": TALK[3:], "tools": [WEATHER]}] * 2,
    "chat_template_kwargs": [
        {"messages": [USER, ASSISTANT], "chat_template_kwargs": {"shout": True}},
        {"messages": [USER, ASSISTANT], "chat_template_kwargs": {"shout": False}},
    ],
    "parts": [
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "a"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "b"}]},
            ]
        }
    ]
    * 2,
    "null content": [{"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}]}] * 2,
    "ShareGPT": [{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}] * 2,
}


def speaking() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def trained(folder: Path, dataset: Any, max_length: int | None = 4096) -> list[dict[str, list[int]]]:
    """What a trainer's own dataset holds."""
    args = SFTConfig(
        output_dir=str(folder / "out"), use_cpu=True, bf16=False, report_to="none", max_length=max_length,
        shuffle_dataset=False,
    )  # fmt: skip
    trainer = SFTTrainer(tiny_model("llama"), args=args, train_dataset=dataset, processing_class=speaking())
    return [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in trainer.train_dataset]


def loaded(kind: str, folder: Path, rows: list[dict[str, Any]]) -> tuple[str, Any]:
    """Write the rows; return the file and the dataset that `datasets` makes of it."""
    path = str(folder / f"rows.{kind}")
    if kind == "parquet":
        Dataset.from_list(rows).to_parquet(path)
        return path, Dataset.from_parquet(path, cache_dir=str(folder / "cache"))
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path, load_dataset("json", data_files=path, split="train", cache_dir=str(folder / "cache"))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("form", sorted(FORMS))
def test_a_file_is_tokenized_as_the_trainer_tokenizes_it(tmp_path: Path, form: str, kind: str) -> None:
    source, dataset = loaded(kind, tmp_path, FORMS[form])
    records = sample_records(source, count=9, seed=0)
    assert tokenize_records(records, speaking(), max_length=4096, tokenize=TRL) == trained(tmp_path, dataset)


@pytest.mark.parametrize("form", sorted(set(FORMS) - {"tools", "chat_template_kwargs"}))
def test_without_trl_the_built_in_tokens_are_the_same(tmp_path: Path, form: str) -> None:
    alone = extensions(build_manager(entry_points=False)).tokenize_examples
    _, dataset = loaded("jsonl", tmp_path, FORMS[form])
    assert tokenize_records(FORMS[form], speaking(), max_length=4096, tokenize=alone) == trained(tmp_path, dataset)


@pytest.mark.parametrize("form", ["text", "prompt and completion", "messages", "tools with prompt and completion"])
@pytest.mark.parametrize("max_length", [8, 40, 100])
def test_long_examples_are_cut_as_the_trainer_cuts_them(tmp_path: Path, form: str, max_length: int) -> None:
    rows = FORMS[form]
    made = [
        row
        for row in tokenize_records(rows, speaking(), max_length=max_length, tokenize=TRL)
        if any(x != -100 for x in row["labels"])
    ]
    try:
        wanted = trained(tmp_path, Dataset.from_list(rows), max_length)
    except (ValueError, StopIteration, IndexError):  # the trainer refuses a dataset of which nothing is left
        wanted = []
    assert made == wanted
    assert all(teaches(row, "causal") for row in made if len(row["labels"]) > 1)


words = st.text(st.characters(codec="ascii", categories=["L", "N", "P", "Zs"]), min_size=1, max_size=12)
turns = st.lists(words, min_size=2, max_size=6).map(
    lambda texts: [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
)
rows_of_one_form = st.one_of(
    st.lists(st.fixed_dictionaries({"text": words}), min_size=1, max_size=4),
    st.lists(st.fixed_dictionaries({"prompt": words, "completion": words}), min_size=1, max_size=4),
    st.lists(st.fixed_dictionaries({"messages": turns}), min_size=1, max_size=4),
    st.lists(st.fixed_dictionaries({"prompt": turns, "completion": turns}), min_size=1, max_size=4),
    st.lists(
        st.fixed_dictionaries({"messages": turns, "tools": st.lists(st.sampled_from([ADD, WEATHER]), min_size=1)}),
        min_size=1,
        max_size=4,
    ),
)


@settings(max_examples=25, deadline=None)
@given(rows=rows_of_one_form)
def test_any_rows_are_tokenized_as_the_trainer_tokenizes_them(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    _, dataset = loaded("jsonl", folder, rows)
    wanted = trained(folder, dataset)
    assert tokenize_records(rows, speaking(), max_length=4096, tokenize=TRL) == wanted
    assert tokenize_records(rows, speaking(), max_length=4096, tokenize=tokenize_by_template) == wanted


class Processor(ProcessorMixin):
    """A processor of text alone that gives batches, as those of vision-language models do."""

    def __init__(self, tokenizer: Any, chat_template: str | None = None) -> None:
        super().__init__(tokenizer, chat_template=chat_template)

    def __call__(self, text: Any = None, add_special_tokens: bool = True, **others: Any) -> Any:
        return self.tokenizer([text] if isinstance(text, str) else text, add_special_tokens=add_special_tokens)


@pytest.mark.parametrize("form", ["text", "prompt and completion", "messages", "messages as prompt and completion"])
def test_a_processor_reads_text_in_parts(form: str) -> None:
    tokenizer = tiny_tokenizer()
    processor = Processor(tokenizer, chat_template=TEMPLATE.replace("{{ part.text }}", "{{ '#' + part.text }}"))
    made = tokenize_records(FORMS[form], processor, tokenize=TRL)
    assert made == tokenize_records(FORMS[form], processor, tokenize=tokenize_by_template)
    if "messages" in form:
        text = "".join(tokenizer.convert_ids_to_tokens(made[0]["input_ids"]))
        assert text == "user: #how is it<eos>assistant: #fine<eos>"


def test_a_tokenizer_without_an_end_token_is_left_to_the_built_in_tokens() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    (tokens,) = tokenize_records([{"text": "ab"}], tokenizer, tokenize=TRL)
    assert tokens["input_ids"] == tokenizer("ab")["input_ids"]


def test_rows_of_two_forms_are_refused() -> None:
    mixed: list[dict[str, Any]] = [{"prompt": "a", "completion": "b"}, {"prompt": [USER], "completion": [ASSISTANT]}]
    with pytest.raises(DataError, match=r"row 1: the example is messages, and those before are text"):
        tokenize_records(mixed, speaking(), tokenize=TRL)


def test_progress_bars_stay_as_they_were(capfd: pytest.CaptureFixture[str]) -> None:
    import datasets

    datasets.enable_progress_bars()
    tokenize_records([{"text": "a"}], speaking(), tokenize=TRL)
    assert datasets.is_progress_bar_enabled()
    assert "examples/s" not in capfd.readouterr().err
