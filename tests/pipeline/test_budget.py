"""A `budget` is held against the very step time that `place` and `plan` announce of the layers they chose."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from command_line import Run, questions, runner
from layercard import PlacementSettings, place, plugins
from layercard.anatomy.adaptable import adapted_layers
from layercard.anatomy.checkpoint_names import checkpointing_arguments
from layercard.errors import SettingsError
from layercard.pipeline.before.looking import RunToPlace, locate_layers
from layercard.pipeline.before.outlook import Outlook
from layercard.pipeline.before.step_ratio import predicted_ratios
from shapes import HYBRIDS, VISION_LANGUAGE, pair_trainer, text_trainer
from tiny import tiny_model, tiny_tokenizer
from trainers import make_trainer


def vision(folder: Path, family: str) -> Any:
    return text_trainer(folder, VISION_LANGUAGE[family][0], "all-linear")


def with_embeddings(folder: Path) -> Any:
    lora = {"modules_to_save": ["embed_tokens"]}
    return text_trainer(folder, lambda: tiny_model("llama"), ["q_proj", "down_proj"], lora=lora)


CASES: dict[str, tuple[Callable[[Path], Any], dict[str, Any]]] = {
    "plain": (make_trainer, {}),
    "checkpointing": (partial(make_trainer, **checkpointing_arguments(True)), {}),
    "entry left": (partial(make_trainer, **checkpointing_arguments(True)), {"gradient_entry": False}),
    "checkpointing off above": (
        partial(make_trainer, **checkpointing_arguments(True)),
        {"checkpointing_above_entry": "off"},
    ),
    "embeddings train": (with_embeddings, {}),
    "some layers": (lambda folder: text_trainer(folder, HYBRIDS["lfm2"], ["q_proj", "v_proj"]), {}),
    "tower shed": (partial(vision, family="qwen3_vl"), {"layers_path": "language_model.layers"}),
    "tower kept": (
        partial(vision, family="qwen3_vl"),
        {"layers_path": "language_model.layers", "other_stacks": "keep"},
    ),
    "projector trains": (partial(vision, family="llava"), {"layers_path": "language_model.layers"}),
    "encoder placed": (partial(pair_trainer, name="bart"), {"layers_path": "encoder.layers"}),
    "decoder placed": (partial(pair_trainer, name="bart"), {"layers_path": "decoder.layers"}),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_predicted_ahead_is_what_the_narrowed_model_is_predicted_to_take(case: str, tmp_path: Path) -> None:
    make, settings = CASES[case]
    trainer = make(tmp_path)
    extensions = plugins.extensions()
    host = extensions.locate_host(trainer)
    assert host is not None
    wanted = PlacementSettings.from_user(budget=1.0, **settings)
    stack = locate_layers(host.model, wanted.layers_path, extensions)
    adaptable = adapted_layers(host.model, stack)
    ahead = predicted_ratios(RunToPlace(host, wanted, stack, extensions, adaptable=adaptable))
    assert ahead is not None
    for layers in (adaptable, adaptable[-1:], adaptable[:1], adaptable[1::2]):
        if not layers:
            continue
        trainer = make(tmp_path / str(layers))
        expected = ahead(layers)
        run = place(trainer, lora_layers=list(layers), guard=False, measure=False, **settings)
        after = Outlook.of(run.host.model, run.stack, run.placement, run.settings, trainer.args, run.units)
        assert after.step.ratio == pytest.approx(expected, rel=1e-12), layers


def test_place_stays_within_a_budget_and_says_so(tmp_path: Path, capfd: Any) -> None:
    trainer = make_trainer(tmp_path, **checkpointing_arguments(True))
    run = place(trainer, lora_layers={"budget": 0.7}, guard=False, measure=False)
    outlook = Outlook.of(run.host.model, run.stack, run.placement, run.settings, trainer.args, run.units)
    assert outlook.step.ratio <= 0.7
    assert f"predicted to take {outlook.step.ratio:.0%} of all-layer LoRA's step time (at most 70%)" in " ".join(
        capfd.readouterr().err.split()
    )
    assert run.statistics is not None
    saved = json.loads((tmp_path / "placement.json").read_text())
    assert (saved["strategy"], saved["score"], saved["made_for"]["settings"]["budget"]) == ("budget", "resnorm", 0.7)


def test_place_and_plan_hold_a_least_gain(tmp_path: Path, run: Run, model: Path) -> None:
    trainer = make_trainer(tmp_path, **checkpointing_arguments(True))
    placed = place(trainer, lora_layers={"min_gain": 0.6}, guard=False, measure=False)
    assert placed.scores is not None
    importance = placed.scores["resnorm"].importance
    assert importance[list(placed.layers)].sum() >= 0.6 * importance.sum()
    asked = ["--dataset", questions(tmp_path), "--min-gain", 0.6, "--no-time-costs"]
    planned = run("plan", model, *asked, "--json").document
    assert planned["placement"]["strategy"] == "budget"
    assert "of its sum (at least 60%)" in planned["placement"]["reason"]
    assert 1 <= len(planned["placement"]["layers"]) < 6


def test_a_budget_too_small_stops_before_the_probe(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.train_dataset.rows = [{"input_ids": None}]  # a probe would stumble over it
    with pytest.raises(SettingsError, match=r"`budget` is 0\.05, and layer 3 of 0–3 alone"):
        place(trainer, lora_layers={"budget": 0.05})


def test_a_resumed_run_keeps_its_budget(tmp_path: Path) -> None:
    first = make_trainer(tmp_path, save_strategy="steps", save_steps=2)
    layers = place(first, lora_layers={"budget": 0.8}, guard=False, measure=False).layers
    first.train()
    checkpoint = str(tmp_path / "checkpoint-2")
    again = make_trainer(tmp_path, resume_from_checkpoint=checkpoint)
    with pytest.raises(SettingsError, match=r"`budget` is 0\.9, and .* was chosen with 0\.8"):
        place(again, lora_layers={"budget": 0.9}, guard=False, measure=False)
    again = make_trainer(tmp_path, resume_from_checkpoint=checkpoint)
    assert place(again, lora_layers={"budget": 0.8}, guard=False, measure=False).layers == layers


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny_model("llama", num_layers=6).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def test_plan_stays_within_a_budget_and_prints_what_a_larger_one_buys(run: Run, model: Path, tmp_path: Path) -> None:
    done = run("plan", model, "--dataset", questions(tmp_path), "--budget", 0.6, "--no-time-costs", "--json")
    assert done.code == 0, done.err
    document = done.document
    expected, placement = document["expected"]["step_ratio"], document["placement"]
    assert expected <= 0.6
    assert f"predicted to take {expected:.0%} of all-layer LoRA's step time (at most 60%)" in placement["reason"]
    assert "What a larger `budget` buys by `resnorm`" in done.words
    assert "100%  ████████████████████  0–5" in done.err
    rows = document["front"]
    assert 2 <= len(rows) <= 10
    assert [row["step_ratio"] for row in rows] == sorted(row["step_ratio"] for row in rows)
    assert (rows[-1]["layers"], rows[-1]["step_ratio"], rows[-1]["score_share"]) == (list(range(6)), 1.0, 1.0)
    named = {row["strategy"]: row for row in document["strategies"]}
    assert named["planned"]["step_ratio"] == expected
    assert "budget" not in named
    for row in rows:
        cheaper = run(
            "plan", model, "--dataset", questions(tmp_path), "--no-time-costs", "--json",
            "--budget", row["step_ratio"] + 1e-6 if row["step_ratio"] < 1 else 1,
        )  # fmt: skip
        assert cheaper.document["placement"]["layers"] == row["layers"]


def test_plan_by_set_gain_says_how_layers_are_coupled(run: Run, model: Path, tmp_path: Path) -> None:
    asked = ("plan", model, "--dataset", questions(tmp_path), "--no-time-costs", "--json")
    done = run(*asked, "--lora-layers", "set_gain", "--num-layers", 3)
    assert done.code == 0, done.err
    document = done.document
    layers, found = document["placement"]["layers"], document["coupling"]
    assert len(layers) == 3
    assert found["layers"] == layers
    assert found["sum_of_single_gains"] / (1 + found["rho"]) - 1e-6 <= found["gain"] <= 0.5
    assert np.array(found["kappa"]).shape == (3, 3)
    single = document["scores"]["set_gain"]["importance"]
    assert found["sum_of_single_gains"] == pytest.approx(sum(single[layer] for layer in layers))
    assert "Coupling (0: they add up): ρ = " in done.words
    assert "set_gain" in {row["strategy"] for row in document["strategies"]}
    within = run(*asked, "--budget", 0.7, "--score", "set_gain").document
    assert within["expected"]["step_ratio"] <= 0.7
    assert within["coupling"]["layers"] == within["placement"]["layers"]
    assert run(*asked, "--lora-layers", "high").document["coupling"] is None


def test_place_by_set_gain(tmp_path: Path) -> None:
    run = place(
        make_trainer(tmp_path), lora_layers={"strategy": "set_gain", "num_layers": 2}, guard=False, measure=False
    )
    assert (len(run.layers), run.placement.score) == (2, "set_gain")


def test_plan_times_costs_once_and_chooses_by_them(run: Run, model: Path, tmp_path: Path) -> None:
    document = run("plan", model, "--dataset", questions(tmp_path), "--budget", 0.9, "--json").document
    assert "timed on 2 layers" in document["costs"]
    assert document["expected"]["step_ratio"] <= 0.9


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--budget", "0.6"], "Give `--dataset`"),
        (["--budget", "0.01", "--dataset", "data.jsonl", "--no-time-costs"], "layer 5 of 0–5 alone, the cheapest"),
        (["--budget", "1.5"], "`budget` is 1.5"),
        (["--budget", "0.6", "--num-layers", "2"], "`num_layers` and `budget` are both given"),
        (["--lora-layers", "budget"], "`budget` is not given"),
    ],
)
def test_what_plan_refuses(run: Run, model: Path, arguments: list[str], words: str) -> None:
    done = run("plan", model, *arguments)
    assert done.code == 2
    assert words in done.words
