"""`layercard plan --axolotl`: the chosen layers stand in the user's file, and everything else is as it was."""

from __future__ import annotations

import json
import subprocess

import pytest
import yaml
from runs import command, sft, write

from layercard.errors import SettingsError
from layercard_axolotl.yaml_file import ConfigFile

TEXT = """# A run of mine.
base_model: "some/model"   # quoted
adapter: lora   # eight ranks

# where
lora_layers:   # mine
  strategy: uniform   # spread
  num_layers: 2

# The optimizer.
optimizer: adamw_torch
datasets:
    - path: x   # four spaces
      type: alpaca
"""

KEYS = {"peft_layers_to_transform": [1], "peft_layers_pattern": ["layers"], "lora_target_modules": None}


def test_only_the_key_changes(tmp_path):
    path = tmp_path / "config.yml"
    path.write_text(TEXT)
    written = ConfigFile.read(path).with_keys(KEYS | {"peft_layers_to_transform": [1, 3]}, "because")
    start, end = TEXT.index("lora_layers"), TEXT.index("\n# The optimizer.")
    keys = "# because\npeft_layers_to_transform: [1, 3]\npeft_layers_pattern: [layers]\n"
    assert written == TEXT[:start] + keys + TEXT[end:]


def test_without_the_key_layers_stand_after_the_adapter(tmp_path):
    path = tmp_path / "config.yml"
    path.write_text("adapter: lora # why\n# next\nlora_r: 4\n")
    written = ConfigFile.read(path).with_keys(KEYS, "because")
    assert written.splitlines()[:2] == ["adapter: lora # why", "# because"]
    assert yaml.safe_load(written) == {
        "adapter": "lora", "peft_layers_to_transform": [1], "peft_layers_pattern": ["layers"], "lora_r": 4,
    }  # fmt: skip


@pytest.mark.parametrize("text", ["{adapter: lora}", "- a\n- b\n", "a: [\n"])
def test_what_is_no_configuration_is_refused(tmp_path, text):
    path = tmp_path / "config.yml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=r"config\.yml"):
        ConfigFile.read(path)


def plan(*arguments) -> subprocess.CompletedProcess[str]:
    return command("layercard", "plan", *arguments)


def test_the_written_configuration_trains_with_axolotl_alone(folder, tmp_path):
    """Under ZeRO-3, which the run itself could not be probed under; the choice reads a score."""
    sharded = sft(
        folder, deepspeed={"zero_optimization": {"stage": 3}}, lora_layers={"strategy": "high", "num_layers": 2}
    )
    path, placed = write(sharded, tmp_path / "out"), tmp_path / "placed.yml"
    done = plan("--axolotl", path, "-o", placed, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.strip().splitlines()[-1])
    layers = document["placement"]["layers"]
    assert len(layers) == 2
    assert document["placement"]["score"] == "resnorm"
    before, after = yaml.safe_load(path.read_text()), yaml.safe_load(placed.read_text())
    assert after.pop("peft_layers_to_transform") == layers
    assert after.pop("peft_layers_pattern") == ["layers"]
    assert before.pop("lora_layers") is not None
    assert after == before
    assert not (tmp_path / "out").exists()


def test_by_depth_neither_weights_nor_data_are_read(folder, tmp_path):
    path = write(sft(folder, lora_layers="last", datasets=None), tmp_path / "out")
    done = plan("--axolotl", path)
    assert done.returncode == 0, done.stderr
    assert "peft_layers_to_transform: [2, 3]" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "Missing argument"),
        (["some/model", "--axolotl", "{config}"], 2, "Drop `model`"),
        (["--axolotl", "{config}", "--strategy", "lsat"], 2, "Did you mean `last`"),
    ],
)
def test_wrong_usage(folder, tmp_path, arguments, code, message):
    path = write(sft(folder, lora_layers=None), tmp_path / "out")
    done = plan(*[text.format(config=path) for text in arguments])
    assert done.returncode == code
    assert message in done.stderr
