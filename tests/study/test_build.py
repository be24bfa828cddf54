"""`layercard cards build` from the command line: its card, its checks, and what a kill leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from layercard.cards.card import LayerCard
from layercard.cards.schema import problems
from layercard.cli.main import main
from layercard.plugins import extensions
from layercard.study.build import StudyModel, build_card
from layercard.study.settings import StudyData
from studies import BRIEF, label_data, question_data
from tiny import tiny_model, tiny_tokenizer

SHORT = [
    "--steps",
    "2",
    "--batch-size",
    "2",
    "--heldout-examples",
    "4",
    "--probe-examples",
    "4",
    "--probe-batch-size",
    "4",
]
SHORT += ["--cost-rounds", "1", "--max-length", "48", "--seeds", "0,1", "--probe-seeds", "2", "--scores", "resnorm,cka"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("private") / "tiny-llama"
    tiny_model("llama", num_layers=3).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> StudyData:
    return question_data(tmp_path_factory.mktemp("questions"))


def words(model: Path, data: StudyData, card: Path, *more: str) -> list[str]:
    return [
        "cards", "build", str(model), "--dataset", data.train, "--heldout", data.heldout,
        "--dataset-id", "questions", "-o", str(card), *SHORT, *more,
    ]  # fmt: skip


def numbers(card: Path) -> dict[str, Any]:
    """What does not depend on a clock."""
    document = json.loads(card.read_text())
    for outcome in document["outcomes"]:
        outcome.pop("cost")
    return {name: value for name, value in document.items() if name not in {"provenance", "reproduction", "probe"}}


def test_a_build_gives_a_valid_card_that_hides_where_it_was_made(
    model: Path, data: StudyData, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    card = tmp_path / "deep" / "card.json"
    assert main(words(model, data, card, "--json", "--generate", "2", "--max-new-tokens", "3")) == 0
    document = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert document == json.loads(card.read_text())
    assert problems(document) == []
    read = LayerCard(document, "card.json")
    assert read.key == "tiny-llama/questions"
    assert read.is_measured and not document["quick"]
    assert {"untuned", "all_layers", "high", "mid", "low", "uniform", "upper_uniform", "last"} == set(read.outcomes)
    for name, outcome in read.outcomes.items():
        assert set(outcome.metrics) == {"heldout_loss", "accuracy", "bleu", "chrf", "ter", "rouge_l"}
        assert len(outcome.metrics["heldout_loss"].seeds) == (0 if name == "untuned" else 2)
    assert set(document["scorers"]) == {"resnorm", "cka"}
    command = document["provenance"]["command"]
    assert command.startswith("layercard cards build tiny-llama --dataset train.jsonl")
    assert "--steps 2" in command and "deep" not in command and str(tmp_path) not in command


def test_a_smoke_card_is_marked(model: Path, data: StudyData, tmp_path: Path) -> None:
    base, tokenizer = tiny_model("llama", num_layers=3), tiny_tokenizer()
    from layercard.cards.fingerprint import model_fingerprint

    facts = model_fingerprint(base, model_id="tiny")
    study = StudyModel(base, tokenizer, "causal", facts)
    document = build_card(study, data, BRIEF.smoke(), work=tmp_path, extensions=extensions())
    assert problems(document) == []
    assert document["quick"] and document["status"] == "community"


def test_a_build_killed_half_way_goes_on_where_it_stopped(model: Path, data: StudyData, tmp_path: Path) -> None:
    card, parts = tmp_path / "card.json", tmp_path / "card.parts"
    command = [sys.executable, "-m", "layercard.cli.main", *words(model, data, card)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        while len(finished(parts)) < 8 and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert not card.exists()
    before = finished(parts)
    assert main(words(model, data, card)) == 0
    after = finished(parts)
    assert all(after[name] == time for name, time in before.items()), "a finished part was made again"
    assert len(after) > len(before)
    whole = tmp_path / "whole.json"
    assert main(words(model, data, whole)) == 0
    assert numbers(card) == numbers(whole)


def finished(parts: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in parts.glob("[!.]*.json")}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--steps", "0"], "`steps` is 0"),
        (["--seeds", "0,0"], "`seeds` is [0, 0]"),
        (["--scores", "resnrom"], "Did you mean `resnorm`?"),
        (["--dataset", "/nowhere/data.jsonl"], "/nowhere/data.jsonl does not exist"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    model: Path, data: StudyData, tmp_path: Path, more: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    card = tmp_path / "card.json"
    assert main(words(model, data, card, *more)) != 0
    assert said in " ".join(capfd.readouterr().err.split())
    assert not card.exists()


def test_bad_data_are_found_before_the_weights_are_loaded(
    model: Path, data: StudyData, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "model"
    shutil.copytree(model, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    wrong = replace(data, heldout=str(tmp_path / "missing.jsonl"))
    assert main(words(bare, wrong, tmp_path / "card.json")) != 0
    assert "missing.jsonl does not exist" in " ".join(capfd.readouterr().err.split())


def test_a_file_has_no_splits_to_hold_out(model: Path, data: StudyData, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["cards", "build", str(model), "--dataset", data.train]) == 2
    assert "`--heldout`" in capfd.readouterr().err


def test_a_classifiers_layers_are_judged_against_its_head_alone(tmp_path: Path) -> None:
    from layercard.cards.fingerprint import model_fingerprint

    base, tokenizer = tiny_model("bert", num_layers=3), tiny_tokenizer()
    study = StudyModel(base, tokenizer, "classification", model_fingerprint(base, model_id="tiny"))
    settings = replace(BRIEF, seeds=(0, 1), probe_seeds=2, scores=("resnorm",))
    document = build_card(study, label_data(tmp_path), settings, work=tmp_path / "parts", extensions=extensions())
    assert problems(document) == []
    untuned = next(outcome for outcome in document["outcomes"] if outcome["name"] == "untuned")
    assert "head trained" in untuned["strategy"]
    assert len(untuned["metrics"]["accuracy"]["seeds"]) == 2
