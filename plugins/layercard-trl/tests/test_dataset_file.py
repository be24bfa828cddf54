"""`--dataset_name` with a file: it trains what the same rows in a folder train, and what cannot be read is refused early."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from layercard.errors import DataError, SettingsError
from layercard.records import SUFFIXES
from layercard_trl.dataset_file import BUILDERS
from layercard_trl.sft import check, parse, run


def flags(model: Path, dataset: object, output: Path) -> list[str]:
    return [
        *("--model_name_or_path", str(model), "--dataset_name", str(dataset), "--output_dir", str(output)),
        *("--use_cpu", "--bf16", "false", "--max_length", "40", "--max_steps", "2", "--report_to", "none"),
        *("--use_peft", "--lora_target_modules", "all-linear", "--lora_layers", "1,3", "--no_lora_layers_measure"),
    ]


@pytest.fixture
def rows(data_folder: Path) -> Path:
    return data_folder / "train.jsonl"


def written(rows: Path, kind: str, folder: Path) -> Path:
    """The same rows in a file of another kind."""
    from datasets import load_dataset

    path = folder / (
        f"rows{kind}" if kind.endswith(".gz") else f"rows [1]*{kind}"
    )  # a name, though it looks like a pattern
    text = rows.read_text()
    if kind == ".json":
        path.write_text(json.dumps([json.loads(line) for line in text.splitlines()]))
    elif kind == ".jsonl.gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif kind in (".csv", ".parquet"):
        data = load_dataset("json", data_files=str(rows), split="train", cache_dir=str(folder))
        data.to_csv(path) if kind == ".csv" else data.to_parquet(path)
    else:
        path.write_text(text)
    return path


@pytest.mark.parametrize("kind", [".json", ".jsonl", ".ndjson", ".csv", ".parquet", ".jsonl.gz", ".JSONL"])
def test_a_file_trains_what_a_folder_with_these_rows_trains(model_folder, data_folder, rows, tmp_path, kind):
    run(flags(model_folder, data_folder, tmp_path / "folder"))
    placed = run(flags(model_folder, written(rows, kind, tmp_path), tmp_path / "file"))
    assert placed.placement.layers == (1, 3)
    ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("file", "folder"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_every_kind_that_layercard_reads_has_a_builder():
    assert set(BUILDERS) == set(SUFFIXES)


def test_part_of_a_file_may_be_held_back_to_evaluate_on(model_folder, rows, tmp_path):
    evaluated = [*flags(model_folder, rows, tmp_path / "out"), "--eval_strategy", "steps", "--eval_steps", "1"]
    with pytest.raises(SettingsError, match=r"`--eval_strategy` is 'steps'.*holds no rows to evaluate on"):
        run(evaluated)
    placed = run([*evaluated, "--test_split_size", "0.25"])
    assert any("eval_loss" in row for row in placed.host.trainer.state.log_history)


def test_a_path_that_is_not_there_is_refused_before_a_process_starts(model_folder, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "layercard", "trl-sft", *flags(model_folder, "rows.jsonl", tmp_path / "out")],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("Error: The dataset rows.jsonl does not exist.")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["no/such/rows", "./rows", "rows.parquet", "~/no/rows.csv"])
def test_what_looks_like_a_path_and_is_none_is_refused(model_folder, tmp_path, name):
    values, _, _ = parse(flags(model_folder, name, tmp_path / "out"))
    with pytest.raises(DataError, match=r"does not exist\. Give a local file"):
        check(values)


def test_a_name_of_the_hub_is_left_to_trl(model_folder, tmp_path):
    values, _, _ = parse(flags(model_folder, "trl-lib/Capybara", tmp_path / "out"))
    assert check(values) is not None


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "is empty"), ("{", r"rows\.jsonl: line 1"), ("3\n", r"rows\.jsonl: line 1")],
)
def test_a_file_that_cannot_be_read_is_refused_by_where_it_is_wrong(model_folder, tmp_path, text, said):
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=said):
        run(flags(model_folder, path, tmp_path / "out"))


@pytest.mark.parametrize(("flag", "value"), [("--dataset_config", "main"), ("--dataset_train_split", "validation")])
def test_what_a_file_has_not_is_refused(model_folder, rows, tmp_path, flag, value):
    with pytest.raises(SettingsError, match=f"`{flag}` is '{value}', and `--dataset_name` is the file"):
        run([*flags(model_folder, rows, tmp_path / "out"), flag, value])
