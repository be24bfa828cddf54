"""Every recipe passes Axolotl's own validation; an 8B model is validated as on a GPU, without its files."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

FOLDER = Path(__file__).parents[3] / "recipes" / "axolotl"
RECIPES = sorted(FOLDER.glob("*.yml"))
GPU = {"bf16": True, "fp8": False, "tf32": True, "n_gpu": 1, "compute_capability": "sm_89"}


def test_there_are_recipes():
    assert {path.stem for path in RECIPES} == {
        "llama-3.1-8b-qlora-alpaca", "llama-3.1-8b-qlora-gsm8k", "qwen3-8b-qlora-alpaca", "qwen3-8b-qlora-gsm8k",
        "smollm2-135m-cpu",
    }  # fmt: skip


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_passes_axolotls_validation(path, monkeypatch):
    from axolotl.cli.config import prepare_plugins
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault
    from axolotl.utils.schemas import validation

    if hasattr(validation, "is_flash_attn_2_available"):  # asked of the machine that trains
        monkeypatch.setattr(validation, "is_flash_attn_2_available", lambda: True)
    written = yaml.safe_load(path.read_text())
    cfg = DictDefault(written)
    prepare_plugins(cfg)
    valid = validate_config(cfg, capabilities=GPU, env_capabilities={"torch_version": "2.13.0"})
    assert valid.lora_layers == written["lora_layers"]
    fused = [valid.lora_mlp_kernel, valid.lora_qkv_kernel, valid.lora_o_kernel]
    assert fused == [path.stem.endswith("alpaca")] * 3


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_first_line_is_the_command(path):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith(f"# axolotl train recipes/axolotl/{path.name}")


def test_unknown_keys_would_be_told():
    """Axolotl drops keys that it does not know; a recipe holds none."""
    from axolotl.utils.schemas.config import AxolotlInputConfig

    for path in RECIPES:
        unknown = set(yaml.safe_load(path.read_text())) - set(AxolotlInputConfig.model_fields) - {"lora_layers"}
        assert not unknown, path
