"""A second run in the same output folder chooses anew; placement.json says what each choice was made for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

import layercard
from adapted import lora_config, with_adapters
from layercard.errors import PlacementError
from layercard.placement.made_for import choice_settings
from layercard.settings import PlacementSettings
from tiny import GQA, collate, tiny_examples, tiny_model
from trainers import Rows, arguments, make_trainer

FIRST = {"lora_layers": {"prefer": "quality"}}
SECOND: list[dict[str, Any]] = [
    {"lora_layers": {"prefer": "speed"}},
    {"lora_layers": {"prefer": "speed"}, "cards": "off", "min_spearman": 0.5, "community_cards": True},
    {"lora_layers": {"strategy": "random", "num_layers": 2}, "random_seed": 3},
    {"lora_layers": {"strategy": "cumulative"}, "cumulative_threshold": 0.9},
    {"lora_layers": "last"},
    {"lora_layers": [1]},
    {"lora_layers": "last", "num_layers": 3},
    {"lora_layers": "first", "min_entry": 1},
]


@pytest.mark.parametrize("settings", SECOND, ids=str)
@pytest.mark.parametrize("family", ["llama", "qwen2", "bert"])
def test_other_settings_and_other_models_choose_as_in_an_empty_folder(
    tmp_path: Path, settings: dict[str, Any], family: str
) -> None:
    layercard.place(make_trainer(tmp_path / "used"), **FIRST)
    again = layercard.place(make_trainer(tmp_path / "used", family=family), **settings)
    fresh = layercard.place(make_trainer(tmp_path / "fresh", family=family), **settings)
    assert again.layers == fresh.layers
    files = [json.loads((tmp_path / name / "placement.json").read_text()) for name in ("used", "fresh")]
    for file in files:
        file["made_for"].pop("date")
    assert files[0] == files[1]


def other(folder: Path, *, targets: list[str], seed: int, model_seed: int) -> Any:
    model = with_adapters(tiny_model("llama", seed=model_seed), lora_config("llama", target_modules=targets))
    rows = Rows(tiny_examples(40, seed=seed))
    return hf.Trainer(model=model, args=arguments(folder), train_dataset=rows, data_collator=collate)


def test_the_record_tells_models_data_targets_and_settings_apart(tmp_path: Path) -> None:
    def record(**changes: Any) -> dict[str, Any]:
        values = {"targets": ["q_proj", "v_proj"], "seed": 0, "model_seed": 0} | changes
        run = layercard.place(other(tmp_path, **values), lora_layers="last")
        found: dict[str, Any] = json.loads((tmp_path / "placement.json").read_text())["made_for"]
        assert run.placement.made_for == found
        return found

    first, same = record(), record()
    assert {**first, "date": ""} == {**same, "date": ""}
    assert first["model"]["architecture"] == "LlamaForCausalLM" and first["model"]["num_layers"] == 4
    assert first["layers_path"] == "model.layers" and first["target_modules"] == ["q_proj", "v_proj"]
    assert first["data"]["rows"] == 40 and first["data"]["columns"] == ["input_ids", "labels"]
    assert first["settings"] == choice_settings(PlacementSettings.from_user("last"))
    assert first["versions"]["peft"] and first["date"].startswith("20")
    assert record(seed=1)["data"]["digest"] != first["data"]["digest"]
    assert record(model_seed=1)["model"]["fingerprint"] != first["model"]["fingerprint"]
    assert record(targets=["k_proj"])["target_modules"] == ["k_proj"]


def t5(folder: Path, **changes: Any) -> Any:
    sizes = {"vocab_size": 120, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 4}
    torch.manual_seed(0)
    base = hf.T5ForConditionalGeneration(hf.T5Config(**sizes, num_decoder_layers=4, decoder_start_token_id=0))
    config = lora_config("t5", target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM")
    args = arguments(folder, **changes)
    return hf.Trainer(
        model=with_adapters(base, config), args=args, train_dataset=Rows(tiny_examples(8)), data_collator=collate
    )


def test_a_placement_of_one_stack_is_not_taken_for_the_other(tmp_path: Path) -> None:
    layercard.place(t5(tmp_path), lora_layers=[1, 2], layers_path="encoder.block")
    saved = str(tmp_path / "placement.json")
    assert layercard.place(t5(tmp_path / "a"), lora_layers=saved, layers_path="encoder.block").layers == (1, 2)
    with pytest.raises(PlacementError, match=r"another stack: .*'encoder\.block' and is 'decoder\.block'"):
        layercard.place(t5(tmp_path / "b"), lora_layers=saved, layers_path="decoder.block")
    with pytest.raises(PlacementError, match=r"stack of layers was 'encoder\.block' and is 'decoder\.block'"):
        layercard.place(t5(tmp_path, resume_from_checkpoint="True"), lora_layers=[1, 2], layers_path="decoder.block")


def test_a_placement_named_for_another_model_is_said_and_another_depth_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    layercard.place(make_trainer(tmp_path / "first"), lora_layers=[1, 2])
    saved = str(tmp_path / "first" / "placement.json")
    capfd.readouterr()
    layercard.place(make_trainer(tmp_path / "same"), lora_layers=saved)
    assert "another model" not in capfd.readouterr().err
    run = layercard.place(make_trainer(tmp_path / "other", family="qwen2"), lora_layers=saved)
    assert run.layers == (1, 2)
    said = " ".join(capfd.readouterr().err.split())
    assert said.count("was chosen for another model: the model was LlamaForCausalLM") == 1
    assert run.placement.made_for is not None
    assert run.placement.made_for["model"]["architecture"] == "Qwen2ForCausalLM"
    assert run.placement.made_for["taken_from"]["made_for"]["model"]["architecture"] == "LlamaForCausalLM"
    deep = with_adapters(hf.LlamaForCausalLM(hf.LlamaConfig(**{**GQA, "num_hidden_layers": 6})), lora_config("llama"))
    trainer = hf.Trainer(
        model=deep, args=arguments(tmp_path / "deep"), train_dataset=Rows(tiny_examples(8)), data_collator=collate
    )
    with pytest.raises(PlacementError, match="made for 4 layers and the model has 6"):
        layercard.place(trainer, lora_layers=saved)


def test_a_run_from_a_named_placement_of_another_model_can_be_resumed(tmp_path: Path) -> None:
    layercard.place(make_trainer(tmp_path / "first"), lora_layers=[1, 2])
    saved = str(tmp_path / "first" / "placement.json")
    layercard.place(make_trainer(tmp_path / "run", family="qwen2"), lora_layers=saved)
    for settings in ({"lora_layers": saved}, {}):
        trainer = make_trainer(tmp_path / "run", family="qwen2", resume_from_checkpoint="True")
        assert layercard.place(trainer, **settings).layers == (1, 2)


def test_files_of_earlier_releases_have_no_record_and_still_load(tmp_path: Path) -> None:
    layercard.place(make_trainer(tmp_path / "first"), lora_layers=[1, 2])
    path = tmp_path / "first" / "placement.json"
    written = json.loads(path.read_text())
    del written["made_for"]
    path.write_text(json.dumps(written))
    assert layercard.place(make_trainer(tmp_path / "next"), lora_layers=str(path)).layers == (1, 2)
    assert layercard.place(make_trainer(tmp_path / "first", resume_from_checkpoint="True")).layers == (1, 2)
