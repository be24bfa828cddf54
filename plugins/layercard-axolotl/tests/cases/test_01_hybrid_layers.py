"""Only some layers hold targets, through Axolotl: the choice is among those, kernels off, kernels on, and planned beforehand."""

from __future__ import annotations

import json

import pytest
from runs import adapter, command, expected_names, read_json, sft, train_here, write

from shapes import lfm2
from tiny import tiny_tokenizer

ODD = {"lora_target_linear": None, "lora_target_modules": r"model.layers.(1|3).self_attn.(q|v)_proj"}
KERNELS = {"lora_qkv_kernel": True, "lora_o_kernel": True}


@pytest.fixture(scope="module")
def hybrid(folder):
    """The folder's data with a model of eight layers, of which 3 and 7 hold attention."""
    lfm2().save_pretrained(folder / "hybrid")
    tiny_tokenizer().save_pretrained(folder / "hybrid")
    return folder


@pytest.mark.parametrize("lora_layers", ["auto", "uniform", [7]], ids=str)
def test_a_hybrid_model_with_kernels_off(hybrid, tmp_path, lora_layers):
    names = {"lora_target_linear": None, "lora_target_modules": ["q_proj", "v_proj"]}
    path = write(sft(hybrid, **names, base_model=str(hybrid / "hybrid"), lora_layers=lora_layers), tmp_path / "out")
    run = train_here(path)
    assert run.layers == (7,)
    assert "1 of the 2 layers that have adapters, of 8" in run.placement.reason


@pytest.mark.parametrize("lora_layers", ["auto", "last"])
def test_kernels_on(folder, tmp_path, lora_layers):
    trained = command(
        "axolotl", "train", write(sft(folder, **ODD, **KERNELS, lora_layers=lora_layers), tmp_path / "out")
    )
    assert trained.returncode == 0, trained.stderr
    placement = read_json(tmp_path / "out" / "placement.json")
    assert (placement["layers"], placement["adaptable"]) == ([3], [1, 3])
    assert set(adapter(tmp_path / "out")) == expected_names([3], ("q_proj", "v_proj"))
    report = read_json(tmp_path / "out" / "report.json")
    assert "built on the chosen layers alone" in report["unavailable"]["step_speedup"]


@pytest.mark.parametrize("lora_layers", ["uniform", "high", [0]], ids=str)
def test_planned_beforehand(folder, tmp_path, lora_layers):
    path = write(sft(folder, **ODD, lora_layers=lora_layers), tmp_path / "out")
    done = command("layercard", "plan", "--axolotl", path, "-o", tmp_path / "placed.yml", "--json")
    if lora_layers == [0]:
        assert "layer 0 of 0–3, where the model has no adapters; it has them in layers 1, 3 of 0–3" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.strip().splitlines()[-1])["placement"]["layers"] in ([1], [3])
