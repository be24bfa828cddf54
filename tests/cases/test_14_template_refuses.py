"""A chat template that refuses a conversation, and rows that hold no conversation: one message that can help."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from command_line import Run, runner
from layercard.data import probe_data
from layercard.errors import DataError
from layercard.plugins import build_manager, extensions
from tiny import tiny_model, tiny_tokenizer

STRICT = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/...') }}{% endif %}"
    "{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
)
USER, ASSISTANT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}
GOOD = {"messages": [USER, ASSISTANT]}
REFUSED: dict[str, tuple[list[dict[str, Any]], str]] = {
    "system": (
        [{"role": "system", "content": "be"}, USER, ASSISTANT],
        r"message 0 of `messages` \(role 'system'\): System role not supported\. .*fold its text into the first user turn",
    ),
    "two users": ([USER, USER, ASSISTANT], r"message 1 .* must alternate .*Two 'user' turns .* merge them"),
    "assistant first": ([ASSISTANT, USER], r"message 0 .* must alternate .* begin with a user turn"),
    "parts": (
        [{"role": "user", "content": [{"type": "text", "text": "hi"}]}, ASSISTANT],
        r"message 0 .*can only concatenate str.*join the parts into one string",
    ),
    "no content": ([USER, {"role": "assistant", "content": None}], r"message 1 .*has no `content`: give it text"),
    "calls": (
        [USER, {"role": "assistant", "tool_calls": [{"a": 1}]}],
        r"message 1 .*`tool_calls`.* template with tools",
    ),
    "tool": ([USER, ASSISTANT, {"role": "tool", "content": "x"}], r"message 2 .*role 'tool'.* no tool turns"),
    "other names": (
        [{"role": "user", "content": "a"}, {"role": "gpt", "content": "b"}, {"role": "human", "content": "b"}],
        r"message 2 .*rename 'human'",
    ),
}
UNREADABLE: dict[str, tuple[dict[str, Any], str]] = {
    "empty": ({"messages": []}, r"line 2: `messages` is an empty list"),
    "null": ({"messages": None}, r"line 2: `messages` is None.*leave the row out"),
    "ShareGPT": ({"messages": [{"from": "human", "value": "a"}]}, r"line 2: message 0 .*Rename `from` to `role`"),
    "text": ({"messages": "hi"}, r"line 2: `messages` is 'hi'.*list of messages"),
    "a list as text": (
        {"messages": json.dumps([USER])},
        r"line 2: .*list written as text: save the rows as JSON lines",
    ),
    "no role": ({"messages": [{"content": "a"}]}, r"line 2: message 0 of `messages` is \{'content': 'a'\}"),
}


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd)


@pytest.fixture(params=["alone", "installed"])
def tokenize(request: pytest.FixtureRequest) -> Any:
    """The built-in tokens, and those of the plugins that are installed."""
    return extensions(build_manager(entry_points=request.param == "installed")).tokenize_examples


def strict() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = STRICT
    return tokenizer


def read(folder: Path, rows: list[dict[str, Any]], tokenize: Any, name: str = "rows.jsonl") -> Any:
    path = folder / name
    path.write_text("\n".join(map(json.dumps, rows)))
    return probe_data(str(path), strict(), tokenize=tokenize)


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_the_row_the_message_and_what_to_do_are_named(tmp_path: Path, case: str, tokenize: Any) -> None:
    messages, wanted = REFUSED[case]
    with pytest.raises(DataError, match=rf"rows\.jsonl, line 2: the chat template refuses {wanted}") as caught:
        read(tmp_path, [GOOD, {"messages": messages}, GOOD], tokenize)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", sorted(UNREADABLE))
def test_rows_that_hold_no_conversation_are_named(tmp_path: Path, case: str, tokenize: Any) -> None:
    row, wanted = UNREADABLE[case]
    with pytest.raises(DataError, match=wanted):
        read(tmp_path, [GOOD, row, GOOD], tokenize)


def test_a_null_completion_among_many_is_named(tmp_path: Path, tokenize: Any) -> None:
    rows = [{"prompt": "a", "completion": "b"}] * 3 + [{"prompt": "a", "completion": None}]
    with pytest.raises(DataError, match=r"line 4: `completion` is None\..*leave the row out"):
        read(tmp_path, rows, tokenize)


def test_sharegpt_is_taken_where_trl_takes_it(tmp_path: Path, tokenize: Any) -> None:
    talk = [{"from": "user", "value": "a"}, {"from": "assistant", "value": "b"}]
    data = read(tmp_path, [{"conversations": talk}], tokenize)
    tokens = strict().convert_ids_to_tokens(data.batches[0]["input_ids"][0])
    assert "".join(tokens) == "user: a<eos>assistant: b<eos>"


def test_messages_in_a_csv_file_are_refused_with_what_keeps_lists(tmp_path: Path, tokenize: Any) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('messages\n"[{""role"": ""user"", ""content"": ""hi""}]"\n')
    with pytest.raises(DataError, match=r"rows\.csv, line 2: .*JSON lines or Parquet, which keep lists"):
        probe_data(str(path), strict(), tokenize=tokenize)


def test_the_command_says_it_in_one_line(run: Run, tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "model")
    strict().save_pretrained(tmp_path / "model")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"messages": REFUSED["system"][0]}) for _ in range(3)))
    ran = run("probe", tmp_path / "model", "--dataset", rows)
    assert ran.code == 1
    assert "rows.jsonl, line 1: the chat template refuses message 0" in ran.words
    assert "--debug" not in ran.words


@pytest.mark.parametrize(
    ("row", "advice"),
    [
        ({"foo": "a", "bar": "b"}, "`--column prompt=foo --column completion=bar`"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "`--column completion=chosen`"),
        ({"chosen": [USER], "rejected": [USER]}, "`--column messages=chosen`"),
        ({"instruction": "a", "input": "", "output": "b"}, "`--column prompt=instruction --column completion=output`"),
        ({"talk": [USER, ASSISTANT]}, "`--column messages=talk`"),
        ({"body": "a"}, "`--column text=body`"),
        ({"prompt": "a"}, "Give a dataset with `completion`"),
    ],
)
def test_advice_on_columns_names_columns_that_are_there(
    tmp_path: Path, row: dict[str, Any], advice: str, tokenize: Any
) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, [row], tokenize)
    assert advice in str(caught.value)
    given = dict(pair.split("=") for pair in advice.strip("`").split() if "=" in pair)
    if given:
        assert probe_data(str(tmp_path / "rows.jsonl"), strict(), columns=given, tokenize=tokenize).examples == 1
