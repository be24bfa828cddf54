"""`plan --check`: layers that changed end it with 3; what they were chosen for is named, and alone changes no exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import layercard
from adapted import lora_config, with_adapters
from command_line import Run, questions, runner
from tiny import tiny_model, tiny_tokenizer
from trainers import make_trainer


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("models") / "model")


def saved(path: Path, *, seed: int = 0) -> Path:
    tiny_model("llama", seed=seed).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return questions(tmp_path_factory.mktemp("data"))


HIGH = ("--strategy", "high", "--num-layers", 4, "--no-time-costs")
"""All four layers, whatever the scores: the choice cannot change."""


def test_the_same_command_finds_no_difference(run: Run, model: Path, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "placement.json"
    run("plan", model, "--dataset", data, *HIGH, "-o", path)
    ran = run("plan", model, "--dataset", data, *HIGH, "--check", path, "--json")
    assert ran.code == 0 and ran.document["check"]["chosen_for"] == []
    record = json.loads(path.read_text())["made_for"]
    assert record["model"]["id"] == "model" and len(record["model"]["fingerprint"]) == 64
    assert record["data"]["name"] == "data.jsonl" and record["layers_path"] == "model.layers"
    assert record["settings"]["strategy"] == "high" and record["versions"]["layercard"]


@pytest.mark.parametrize("scored", [True, False])
def test_another_model_of_the_same_name_is_named(
    run: Run, model: Path, data: Path, tmp_path: Path, scored: bool
) -> None:
    """Also where no weights were loaded for the choice."""
    path, how = tmp_path / "placement.json", HIGH if scored else ("--lora-layers", "last", "--no-time-costs")
    run("plan", model, "--dataset", data, *how, "-o", path)
    other = saved(tmp_path / "model", seed=3)
    ran = run("plan", other, "--dataset", data, *how, "--check", path, "--json")
    assert ran.code == 0 and ran.document["check"]["same"]
    (difference,) = ran.document["check"]["chosen_for"]
    assert difference.startswith("the model was model (weights ")
    assert "still holds" in ran.words and "Since it was chosen, the model was" in ran.words


def test_other_data_settings_and_targets_are_named(run: Run, model: Path, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "placement.json"
    run("plan", model, "--dataset", data, *HIGH, "--target-modules", "q_proj", "-o", path)
    other = tmp_path / "data.jsonl"
    other.write_text(data.read_text().replace("answer", "reply"))
    changed = ("--probe-examples", 6, "--target-modules", "v_proj")
    ran = run("plan", model, "--dataset", other, *HIGH, *changed, "--check", path, "--json")
    assert ran.code == 0
    found = " ".join(ran.document["check"]["chosen_for"])
    for part in (
        "`target_modules` was ['q_proj'] and is ['v_proj']", "the data was data.jsonl", "`probe_examples` was 32 and is 6",
    ):  # fmt: skip
        assert part in found


def test_layers_that_changed_come_with_what_else_changed(run: Run, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "placement.json"
    run("plan", model, "--prefer", "quality", "--no-time-costs", "-o", path)
    ran = run("plan", model, "--prefer", "speed", "--no-time-costs", "--check", path, "--json")
    assert ran.code == 3
    assert ran.document["check"]["chosen_for"] == ["`prefer` was 'quality' and is 'speed'"]


def test_settings_that_a_choice_does_not_read_are_not_named(run: Run, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "placement.json"
    run("plan", model, "--lora-layers", "last", "--no-time-costs", "-o", path)
    ran = run("plan", model, "--lora-layers", "last", "--random-seed", 4, "--no-time-costs", "--check", path, "--json")
    assert ran.code == 0 and ran.document["check"]["chosen_for"] == []


def test_a_file_without_a_record_is_said_to_have_none(run: Run, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "placement.json"
    run("plan", model, "--no-time-costs", "-o", path)
    held = json.loads(path.read_text())
    del held["made_for"]
    path.write_text(json.dumps(held))
    ran = run("plan", model, "--no-time-costs", "--check", path)
    assert ran.code == 0 and "has no record of what it was chosen for" in ran.words


def test_a_plan_is_trained_and_a_trained_placement_checked(
    run: Run, model: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The command's record and the trainer's are compared where both know: the weights, not how rows were read."""
    path = tmp_path / "placement.json"
    run("plan", model, "--dataset", data, "--strategy", "high", "--num-layers", 2, "--no-time-costs", "-o", path)
    base = type(tiny_model("llama")).from_pretrained(model)
    made = make_trainer(tmp_path / "run")
    trainer = type(made)(
        model=with_adapters(base, lora_config("llama")),
        args=made.args,
        train_dataset=made.train_dataset,
        data_collator=made.data_collator,
    )
    layers = layercard.place(trainer, lora_layers=str(path)).layers
    assert "another model" not in capfd.readouterr().err
    trained_on = tmp_path / "run" / "placement.json"
    ran = run(
        "plan", model, "--dataset", data, "--lora-layers", ",".join(map(str, layers)), "--no-time-costs",
        "--check", trained_on, "--json",
    )  # fmt: skip
    assert ran.code == 0
    assert not any("model" in line or "data" in line for line in ran.document["check"]["chosen_for"])
