"""Tools, template options and tool calls stand in the tokens that are scored, from every kind of file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from brought import write
from command_line import Run, runner
from layercard.data import probe_data, tokenize_records
from layercard.errors import DataError
from layercard.plugins import build_manager, extensions
from tiny import tiny_model, tiny_tokenizer

TEMPLATE = (
    "{% if shout %}{{ 'LOUD ' }}{% endif %}{% if tools %}{{ 'TOOLS ' + tools | tojson + eos_token }}{% endif %}"
    "{% for m in messages %}{{ m['role'] + ': ' }}{% if m.content is string %}{{ m.content }}"
    "{% elif m.content %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}"
    "{% for call in m.tool_calls or [] %}{{ 'CALL ' + call.function.name + call.function.arguments | tojson }}"
    "{% endfor %}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
TOOLS = [
    {
        "type": "function",
        "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "x"}}}},
    }
]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
TURNS = [
    {"role": "user", "content": "one more"},
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "name": "add", "content": "2"},
    {"role": "assistant", "content": "two"},
]
TOLD = 'user: one more<eos>assistant: CALL add{"a": 1}<eos>tool: 2<eos>assistant: two<eos>'
SHOWN = f"TOOLS {json.dumps(TOOLS)}<eos>"


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd)


@pytest.fixture(params=["alone", "installed"])
def tokenize(request: pytest.FixtureRequest) -> Any:
    """The built-in tokens, and those of the plugins that are installed."""
    return extensions(build_manager(entry_points=request.param == "installed")).tokenize_examples


def speaking() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def said(row: dict[str, Any], tokenize: Any) -> str:
    """The tokens of a row as text without what decoding puts between them."""
    tokenizer = speaking()
    (tokens,) = tokenize_records([row], tokenizer, tokenize=tokenize, max_length=4096)
    return "".join(tokenizer.convert_ids_to_tokens(tokens["input_ids"]))


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"messages": TURNS}, TOLD),
        ({"messages": TURNS, "tools": TOOLS}, SHOWN + TOLD),
        ({"messages": TURNS, "tools": json.dumps(TOOLS)}, SHOWN + TOLD),
        ({"messages": TURNS, "tools": None}, TOLD),
        ({"messages": TURNS, "chat_template_kwargs": {"shout": True}}, f"LOUD {TOLD}"),
        ({"prompt": TURNS[:3], "completion": TURNS[3:], "tools": TOOLS}, SHOWN + TOLD),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
            "user: ab<eos>",
        ),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            "human: a<eos>gpt: b<eos>",
        ),
    ],
)
def test_what_the_template_prints_is_scored(row: dict[str, Any], wanted: str, tokenize: Any) -> None:
    assert said(row, tokenize) == wanted


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_every_kind_of_file_keeps_them(tmp_path: Path, kind: str, tokenize: Any) -> None:
    row = {"messages": TURNS, "tools": TOOLS}
    path = tmp_path / f"rows.{kind}"
    if kind == "json":
        path.write_text(json.dumps([row, row]))
    else:
        write(path, [row, row])
    if kind == "parquet":  # absent fields come back as None
        assert datasets.Dataset.from_parquet(str(path))[0]["messages"][0]["tool_calls"] is None
    tokenizer = speaking()
    (batch,) = probe_data(str(path), tokenizer, tokenize=tokenize).batches
    assert "".join(tokenizer.convert_ids_to_tokens(batch["input_ids"][0])) == SHOWN + TOLD


def test_only_the_completion_is_labelled(tokenize: Any) -> None:
    tokenizer = speaking()
    row = {"prompt": TURNS[:3], "completion": TURNS[3:], "tools": TOOLS}
    (tokens,) = tokenize_records([row], tokenizer, tokenize=tokenize)
    learned = [token for token in tokens["labels"] if token != -100]
    assert "".join(tokenizer.convert_ids_to_tokens(learned)) == "two<eos>"
    assert tokens["labels"][-len(learned) :] == learned


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        ({"tools": "[{"}, r"row 0: `tools` is '\[\{', which is not JSON"),
        ({"tools": {"name": "add"}}, r"row 0: `tools` is .* Give a list of tool schemas"),
        ({"chat_template_kwargs": "x"}, r"row 0: `chat_template_kwargs` is 'x'. Give an object"),
    ],
)
def test_tools_that_cannot_be_read_are_named(beside: dict[str, Any], message: str, tokenize: Any) -> None:
    with pytest.raises(DataError, match=message):
        said({"messages": TURNS, **beside}, tokenize)


def test_the_command_scores_other_tokens_with_tools_than_without(run: Run, tmp_path: Path) -> None:
    tiny_model("llama", max_position_embeddings=512).save_pretrained(tmp_path / "model")
    speaking().save_pretrained(tmp_path / "model")
    counts = {}
    for name, beside in (("with", {"tools": TOOLS}), ("without", {})):
        rows = write(tmp_path / f"{name}.jsonl", [{"messages": TURNS, **beside}] * 4)
        ran = run("probe", tmp_path / "model", "--dataset", rows, "--json")
        assert ran.code == 0, ran.err
        counts[name] = ran.document["probe"]["tokens"]
    assert counts["with"] - counts["without"] == 4 * (len(SHOWN) - len("<eos>") + 1)
