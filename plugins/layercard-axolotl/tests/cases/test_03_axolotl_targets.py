"""Target modules as a regular expression, through Axolotl: kernels off, kernels on, and planned beforehand."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from runs import adapter, command, expected_names, read_json, sft, train_here, write

SPELLED = r"model.layers.[\d]+.(self_attn|mlp).(q|v|up)_proj"
NAMED = ("q_proj", "v_proj", "up_proj")
EXPRESSION = {"lora_target_linear": None, "lora_target_modules": SPELLED}
KERNELS = {"lora_qkv_kernel": True, "lora_o_kernel": True}


def selected_by(output) -> set[str]:
    """What PEFT selects in a fresh model from the saved adapter's configuration."""
    from peft import LoraConfig, get_peft_model

    from tiny import tiny_model

    config = LoraConfig.from_pretrained(output)
    config.inference_mode = False
    model = get_peft_model(tiny_model("llama"), config)
    return {name for name, _ in model.named_parameters() if "lora_" in name}


def check(output, layers, targets=NAMED):
    assert read_json(output / "placement.json")["layers"] == layers
    assert set(adapter(output)) == expected_names(layers, targets)
    assert {name.replace(".default", "") for name in selected_by(output)} == expected_names(layers, targets)


@pytest.mark.parametrize("lora_layers", [[1, 3], "auto"], ids=str)
def test_kernels_off(folder, tmp_path, lora_layers):
    run = train_here(write(sft(folder, **EXPRESSION, lora_layers=lora_layers), tmp_path / "out"))
    check(tmp_path / "out", list(run.layers))


@pytest.mark.parametrize("targets", [SPELLED, "all-linear"])
def test_kernels_on(folder, tmp_path, targets):
    config = sft(folder, **(EXPRESSION | {"lora_target_modules": targets}), **KERNELS, lora_layers="auto")
    trained = command("axolotl", "train", write(config, tmp_path / "out"))
    assert trained.returncode == 0, trained.stderr
    everything = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    check(tmp_path / "out", [1, 3], NAMED if targets == SPELLED else everything)


@pytest.mark.parametrize("lora_layers", ["last", {"strategy": "high", "num_layers": 2}], ids=["depth", "score"])
def test_planned_beforehand(folder, tmp_path, lora_layers):
    path, placed = write(sft(folder, **EXPRESSION, lora_layers=lora_layers), tmp_path / "out"), tmp_path / "placed.yml"
    done = command("layercard", "plan", "--axolotl", path, "-o", placed, "--json")
    assert done.returncode == 0, done.stderr
    layers = json.loads(done.stdout.strip().splitlines()[-1])["placement"]["layers"]
    before, after = yaml.safe_load(path.read_text()), yaml.safe_load(placed.read_text())
    for config in (before, after):
        config.pop("lora_layers", None)
    asked = after.pop("lora_target_modules")
    assert before.pop("lora_target_modules") == SPELLED
    assert after.pop("peft_layers_to_transform", None) in (None, layers)
    after.pop("peft_layers_pattern", None)
    assert after == before
    assert not any(re.search(r"[\\(|]", name) for name in asked)
    run = train_here(placed)
    assert run is None
    assert set(adapter(tmp_path / "out")) == expected_names(layers, NAMED)


def test_an_expression_that_selects_nothing_stops_before_training(folder, tmp_path):
    nothing = EXPRESSION | {"lora_target_modules": r"model.layers.\d+.attention.(q|v)_proj"}
    done = command(
        "layercard", "plan", "--axolotl", write(sft(folder, **nothing, lora_layers="last"), tmp_path / "out")
    )
    assert done.returncode != 0
    assert "selects no module in the layers of `model.layers`" in done.stderr
    assert "`q_proj`" in done.stderr
