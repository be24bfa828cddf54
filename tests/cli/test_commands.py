"""`probe`, `plan` and `plugins` on a tiny saved model: their documents, files, exit codes and one-line errors."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from command_line import Run, questions, runner
from layercard import LayerPlacement, PlacementSettings
from layercard.cli.plan import SETTINGS, TRAINING_ONLY
from tiny import tiny_model, tiny_tokenizer

DEPTH = 6


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny_model("llama", num_layers=DEPTH).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return questions(tmp_path_factory.mktemp("data"))


def test_probe_prints_the_document_of_every_score(run: Run, model: Path, data: Path) -> None:
    ran = run(
        "probe", model, "--dataset", data, "--score", "resnorm", "--score", "cka", "--json", "--probe-examples", 8
    )
    assert ran.code == 0, ran.err
    assert len(ran.out.splitlines()) == 1
    document = ran.document
    assert {"model", "num_layers", "scores", "activation_energy", "probe"} <= set(document)
    assert set(document["scores"]) == {"resnorm", "cka"}
    for scores in document["scores"].values():
        assert len(scores["importance"]) == len(scores["raw"]) == document["num_layers"] == DEPTH
    assert len(document["activation_energy"]) == DEPTH
    assert document["probe"]["examples"] == 8
    assert document["probe"]["tokens"] > 0


def test_probe_shows_a_row_a_layer(run: Run, model: Path, data: Path) -> None:
    ran = run("probe", model, "--dataset", data)
    rows = [line.split() for line in ran.out.splitlines() if line.strip()[:1].isdigit() and "█" in line]
    assert [int(row[0]) for row in rows] == list(range(DEPTH))


def test_probing_twice_gives_the_same_scores(run: Run, model: Path, data: Path) -> None:
    asked = ("probe", model, "--dataset", data, "--json", "--random-seed", 3, "--probe-examples", 6)
    assert run(*asked).document["scores"] == run(*asked).document["scores"]


def test_what_was_not_measured_is_null_with_its_reason(run: Run, model: Path, data: Path) -> None:
    document = run("probe", model, "--dataset", data, "--score", "cka", "--json").document
    assert document["activation_energy"] is None
    assert "activation_energy" in document["unavailable"]


def test_target_modules_narrow_what_is_probed(run: Run, model: Path, data: Path) -> None:
    document = run("probe", model, "--dataset", data, "--target-modules", "q_proj,v_proj", "--json").document
    assert len(document["target_modules"]) == 2


def test_an_encoder_classifier_is_probed_on_text_and_label(run: Run, tmp_path: Path) -> None:
    tiny_model("bert").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    rows = [{"sentence": f"text {i}", "label": i % 3} for i in range(6)]
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    ran = run("probe", tmp_path, "--dataset", tmp_path / "data.jsonl", "--column", "text=sentence", "--json")
    assert ran.code == 0, ran.err
    assert ran.document["num_layers"] == 4


def test_plan_by_auto_reads_neither_weights_nor_data(run: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((model / "config.json").read_text())
    ran = run("plan", tmp_path, "--json")
    assert ran.code == 0, ran.err
    assert ran.document["placement"]["layers"] == [3, 5]
    assert ran.document["probe"] is None


def test_plan_says_layers_step_ratio_quality_and_the_learning_rate(run: Run, model: Path) -> None:
    words = run("plan", model).words
    for part in ("layers 3, 5 of 0–5", "Predicted: a step is ", "unproven", "the learning rate: over six pairs"):
        assert part in words


def test_plan_writes_what_it_prints(run: Run, model: Path, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "placement.json"
    ran = run("plan", model, "--dataset", data, "--strategy", "high", "--num-layers", 2, "-o", path, "--json")
    assert ran.code == 0, ran.err
    placement, expected = ran.document["placement"], ran.document["expected"]
    assert json.loads(path.read_text()) == placement
    assert LayerPlacement.load(path).layers == tuple(placement["layers"])
    importance = ran.document["scores"]["resnorm"]["importance"]
    assert placement["layers"] == sorted(np.argsort(importance)[-2:].tolist())
    assert {"step_speedup", "peak_memory_ratio", "quality"} <= set(expected)
    assert expected["step_speedup"] >= 1
    assert expected["peak_memory_ratio"] is None
    assert "peak_memory_ratio" in expected["unavailable"]
    assert expected["quality"]["kind"] == "unknown"


def test_a_saved_placement_can_be_planned_with(run: Run, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "placement.json"
    run("plan", model, "--lora-layers", "1,4", "-o", path)
    assert run("plan", model, "--lora_layers", path, "--json").document["placement"]["layers"] == [1, 4]


def test_check_exits_with_3_only_where_the_choice_would_change(run: Run, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "placement.json"
    run("plan", model, "-o", path)
    before = path.read_text()
    same = run("plan", model, "--check", path, "--json")
    assert (same.code, same.document["check"]["same"]) == (0, True)
    changed = run("plan", model, "--prefer", "speed", "-o", path, "--check", "--json")
    assert (changed.code, changed.document["check"]["same"]) == (3, False)
    assert "layers 3, 5 of 0–5" in changed.document["check"]["difference"]
    assert "layers 4–5 of 0–5" in changed.err
    assert path.read_text() == before


def test_check_against_another_depth_says_so(run: Run, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "placement.json"
    LayerPlacement((1,), 30, "last", None, "by hand").save(path)
    ran = run("plan", model, "--check", path)
    assert ran.code == 3
    assert "made for 30 layers, and the model has 6" in ran.words


def test_every_strategy_is_priced_with_and_without_the_cache(run: Run, model: Path, data: Path) -> None:
    unprobed = run("plan", model, "--lora-layers", "last", "--num-layers", 2, "--json")
    costs = {cost["strategy"]: cost for cost in unprobed.document["strategies"]}
    assert {"planned", "first", "middle", "last", "uniform", "random"} <= set(costs)
    assert "high" not in costs  # reads a score, and nothing was probed
    assert costs["planned"]["layers"] == costs["last"]["layers"] == [4, 5]
    assert costs["last"]["step_ratio"] < costs["middle"]["step_ratio"] < costs["first"]["step_ratio"]
    for cost in costs.values():
        assert cost["cached_step_ratio"] <= cost["step_ratio"]
    assert "timed on 2 layers" in unprobed.document["costs"]
    assert "prefix cached" in unprobed.words
    probed = run("plan", model, "--dataset", data, "--strategy", "high", "--num-layers", 2, "--json")
    assert {"high", "mid", "low", "cumulative"} <= {cost["strategy"] for cost in probed.document["strategies"]}


def test_prediction_follows_the_settings_of_the_run(run: Run, model: Path) -> None:
    def speedup(*flags: str) -> float:
        ran = run("plan", model, "--lora-layers", "last", "--no-time-costs", *flags, "--json")
        found: float = ran.document["expected"]["step_speedup"]
        return found

    usual = speedup()
    assert speedup("--no-gradient-entry") < usual < speedup("--checkpointing-above-entry", "off")
    assert speedup("--no-gradient-checkpointing") != usual


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--lora-layers", "unifrom"], 2, "Did you mean `uniform`?"),
        (["--lora-layers", "5"], 2, "bare number 5"),
        (["--lora-layers", "2,9"], 2, "layer 9, and the model has layers 0–5"),
        (["--lora-layers", "last", "--num-layers", "9"], 2, "`num_layers` is 9"),
        (["--indices", "1,x"], 2, "not a list of whole numbers"),
        (["--num-layers", "many"], 2, "not a valid integer"),
        (["--score", "cka"], 2, "`auto` reads no score"),
        (["--strategy", "high", "--score", "ckaa"], 2, "Did you mean `cka`?"),
        (["--strategy", "high"], 2, "Give `--dataset`"),
        (["--strategy", "high", "--dataset", "nowhere.jsonl"], 1, "does not exist"),
        (["--dataset", "nowhere.jsonl"], 1, "does not exist"),
        (["--lora-layers", "uniform", "--dataset", "nowhere.jsonl"], 1, "does not exist"),
        (["--column", "prompt"], 2, "PART=NAME"),
        (["--check"], 2, "Name it, or give `-o`"),
        (["--check", "nowhere.json"], 1, "does not exist"),
        (["--lora-layers", "nowhere.json"], 1, "does not exist"),
        (["--layers-path", "nothing"], 1, "`layers_path` is 'nothing'"),
        (["--no-such-option"], 2, "No such option"),
    ],
)
def test_errors_are_one_line_with_their_exit_code(
    run: Run, model: Path, arguments: list[str], code: int, message: str
) -> None:
    ran = run("plan", model, *arguments)
    assert ran.code == code, ran.err
    assert message in ran.words
    (line,) = [line for line in ran.err.splitlines() if line.startswith("Error:")]
    assert ran.err.endswith(f"{line}\n")
    assert "Traceback" not in ran.err
    assert ran.out == ""


def test_models_that_cannot_be_loaded_say_what_is_missing(run: Run, model: Path, data: Path, tmp_path: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    bare, headless, empty = (tmp_path / name for name in ("bare", "headless", "empty"))
    for path in (bare, headless, empty):
        path.mkdir()
    (bare / "config.json").write_text(json.dumps(config))
    (headless / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaModel"]}))
    probing = ("--dataset", data)
    assert "./nowhere does not exist" in run("plan", "./nowhere").words
    assert "config.json" in run("plan", empty).words
    assert "LlamaModel, which has no head" in run("plan", headless).words
    said = run("probe", bare, *probing).words  # transformers 5.0 makes up a tokenizer, and then lacks the weights
    assert "The tokenizer of" in said or "The weights of" in said
    tiny_tokenizer().save_pretrained(bare)
    missing = run("probe", bare, *probing)
    assert missing.code == 1
    assert "The weights of" in missing.words


def test_folders_and_files_that_hold_no_model_say_what_they_are(run: Run, model: Path, tmp_path: Path) -> None:
    adapter, gguf = tmp_path / "adapter", tmp_path / "gguf"
    for path in (adapter, gguf):
        path.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/base"}))
    (gguf / "model-q4.gguf").write_bytes(b"GGUF")
    assert "holds a PEFT adapter of owner/base and no model. Give owner/base" in run("plan", adapter).words
    (adapter / "adapter_config.json").write_text("[]")
    assert "holds a PEFT adapter and no model" in run("plan", adapter).words
    for path in (gguf, gguf / "model-q4.gguf"):
        assert "is a GGUF file" in run("plan", path).words
    assert "Give the folder that holds it" in run("plan", model / "model.safetensors").words


@pytest.mark.parametrize("damage", ["cut", "pointer", "empty", "other sizes"])
@pytest.mark.parametrize("task", ["causal", "classification"])
def test_damaged_weights_and_those_of_another_model_are_one_clear_error(
    run: Run, model: Path, tmp_path: Path, damage: str, task: str
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(model, folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    if damage == "other sizes":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"intermediate_size": 64}))
    else:
        content = {
            "cut": weights.read_bytes()[:-100],
            "pointer": b"version https://git-lfs.github.com/spec/v1\n",
            "empty": b"",
        }
        weights.write_bytes(content[damage])
    data = tmp_path / "labelled.jsonl"
    data.write_text("\n".join(json.dumps({"text": f"row {i}", "label": i % 3}) for i in range(9)))
    ran = run("probe", folder, "--dataset", data, "--task", task)
    assert (ran.code, "Traceback" in ran.err, "layercard --debug" in ran.err) == (1, False, False)
    assert ("other sizes than its config.json says" if damage == "other sizes" else "git lfs pull") in ran.words


def test_a_split_of_one_file_is_refused(run: Run, model: Path, data: Path) -> None:
    assert run("probe", model, "--dataset", data, "--split", "train").code == 0
    ran = run("probe", model, "--dataset", data, "--split", "validation")
    assert (ran.code, ran.out) == (2, "")
    assert "is one file, which is read whole" in ran.words


def test_debug_shows_where_it_failed_before_or_after_the_command(run: Run, model: Path) -> None:
    for arguments in (("--debug", "plan", model), ("plan", model, "--debug")):
        ran = run(*arguments, "--lora-layers", "unifrom")
        assert ran.code == 2
        assert "Traceback" in ran.err


def test_plugins_lists_the_built_ins_with_what_they_supply(run: Run) -> None:
    rows = {row["name"]: row for row in run("plugins", "--json").document["plugins"]}
    built_in = rows["layercard"]
    assert {"resnorm", "activation", "cka", "gradient_norm"} <= set(built_in["scores"])
    assert {"high", "cumulative", "uniform", "random"} <= set(built_in["strategies"])
    assert {"probe", "plan", "plugins"} <= set(built_in["commands"])
    assert "uniform" in run("plugins").out


def test_every_setting_is_an_option_of_plan_or_of_training_alone() -> None:
    assert {*SETTINGS, *TRAINING_ONLY} == {field.name for field in fields(PlacementSettings)}
