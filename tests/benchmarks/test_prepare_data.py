"""Prepared data sets: what a published row becomes, and that TRL's columns are all that training rows hold."""

from __future__ import annotations

import gzip
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "prepare_data.py"

PUBLISHED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "e2e": ("train.jsonl.gz", "test.jsonl", {"mr": "name[Aromi]", "refs": ["Aromi is a pub.", "A pub: Aromi."]}),
    "gsm8k": ("train.jsonl", "test.jsonl", {"question": "Two and two?", "answer": "2+2=<<2+2=4>>4.\n#### 1,004"}),
    "arc_easy": ("train.jsonl", "test.jsonl", {"question": "Which?", "choices": ["sun", "moon"], "label": 1}),
    "mathqa": ("train_from_dev.jsonl", "test.jsonl", {
        "problem": "1 + 1 ?", "options": "a ) 2 , b ) 1 , 200 , c ) 3 , d ) 4 , e ) none", "correct": "b"}),
    "glue_cola": ("train.jsonl", "validation.jsonl", {"sentence": "They goes.", "label": 0}),
}  # fmt: skip


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prepare_data", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["prepare_data"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def prepared(script: ModuleType, name: str, folder: Path, rows: int = 5) -> tuple[list[Any], list[Any]]:
    train, heldout, row = PUBLISHED[name]
    source = folder / "data" / name
    source.mkdir(parents=True, exist_ok=True)
    for file in (train, heldout):
        lines = "".join(json.dumps({**row, "number": n}) + "\n" for n in range(rows)).encode()
        (source / file).write_bytes(gzip.compress(lines) if file.endswith(".gz") else lines)
    paths = script.prepare(name, folder / "data", folder / "out")
    learnt, judged = ([json.loads(line) for line in path.read_text().splitlines()] for path in paths)
    return learnt, judged


@pytest.mark.parametrize("name", sorted(set(PUBLISHED) - {"glue_cola"}))
def test_training_rows_hold_prompt_and_completion_alone(script: ModuleType, name: str, tmp_path: Path) -> None:
    learnt, judged = prepared(script, name, tmp_path)
    assert all(set(row) == {"prompt", "completion"} for row in learnt)
    assert all(row["completion"].startswith(" ") and not row["prompt"].endswith(" ") for row in learnt)
    assert len(judged) == 5
    for row in judged:
        if "choices" in row:
            assert row["choices"][row["label"]] == row["completion"]


def test_every_reference_is_learned_and_kept(script: ModuleType, tmp_path: Path) -> None:
    learnt, judged = prepared(script, "e2e", tmp_path, rows=1)
    assert {row["completion"] for row in learnt} == {" Aromi is a pub.", " A pub: Aromi."}
    assert judged[0]["references"] == ["Aromi is a pub.", "A pub: Aromi."]


def test_calculations_go_and_the_number_stands_apart(script: ModuleType, tmp_path: Path) -> None:
    _, judged = prepared(script, "gsm8k", tmp_path, rows=1)
    assert judged[0]["completion"] == " 2+2=4.\n#### 1,004"
    assert judged[0]["answer"] == "1004"


def test_mathqa_writes_its_options_in_two_ways(script: ModuleType) -> None:
    assert script.options("a ) 2 , b ) 1 , 200 , c ) 3 , d ) 4 , e ) none") == ["2", "1 , 200", "3", "4", "none"]
    assert script.options("['a ) 4', 'b ) 4 π', 'c ) 16', 'd ) 8', 'e ) 16']") == ["4", "4 π", "16", "8", "16"]
    with pytest.raises(ValueError, match="should be a to e"):
        script.options("a ) 2 , c ) 3")


def test_sentences_keep_their_class(script: ModuleType, tmp_path: Path) -> None:
    learnt, judged = prepared(script, "glue_cola", tmp_path)
    assert learnt == judged == [{"text": "They goes.", "label": 0}] * 5


def test_the_same_input_gives_the_same_bytes(script: ModuleType, tmp_path: Path) -> None:
    prepared(script, "arc_easy", tmp_path)
    first = (tmp_path / "out" / "arc_easy" / "train.jsonl").read_bytes()
    prepared(script, "arc_easy", tmp_path)
    assert (tmp_path / "out" / "arc_easy" / "train.jsonl").read_bytes() == first
