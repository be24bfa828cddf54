"""Configurations that cannot be placed, refused by Axolotl's own validation before anything is loaded."""

from __future__ import annotations

import json
import re

import pytest
from runs import command, sft, write

from layercard.errors import SettingsError
from layercard_axolotl.refusals import refuse_configuration, refuse_trained_adapter

MAPPING = {"strategy": "uniform", "num_layers": 2}


@pytest.fixture(scope="session")
def validate(folder):
    """Load and validate a configuration as `axolotl train` does."""
    from axolotl.cli.config import load_cfg

    def run(tmp_path, **changes):
        return load_cfg(str(write(sft(folder, **changes), tmp_path / "out")))

    return run


@pytest.mark.parametrize(
    "value", ["auto", "last", [1, 3], MAPPING, {"num_layers": 2, "prefer": "speed"}, "placement.json"], ids=str
)
def test_everything_that_a_user_may_write_is_kept(validate, tmp_path, value):
    cfg = validate(tmp_path, lora_layers=value)
    assert cfg.lora_layers == value


REFUSED = {
    "no adapter": ({"adapter": None, "lora_target_linear": None}, "there is no `adapter`"),
    "another adapter": ({"adapter": "llama-adapter"}, "`adapter` is 'llama-adapter'"),
    "own layers": ({"peft_layers_to_transform": [1]}, "`peft_layers_to_transform` ([1])"),
    "unfrozen": ({"unfrozen_parameters": ["model.norm"]}, "freezes every parameter whose name these patterns do not match"),
    "no regex": ({"lora_target_modules": "(q|v_proj", "lora_target_linear": None}, "Mend it, or give a list"),
    "regex in a list": (
        {"lora_target_modules": ["k_proj", r".*\.(q|v)_proj"], "lora_target_linear": None},
        r"such as '.*k_proj|.*\\.(q|v)_proj'",
    ),
    "relora": ({"relora": True, "jagged_restart_steps": 4}, "`relora`"),
    "grpo": ({"rl": "grpo"}, "`rl` is 'grpo'"),
    "reward model": ({"reward_model": True, "datasets": None}, "`reward_model`"),
    "bare number": ({"lora_layers": 3}, "bare number 3"),
    "unknown setting": ({"lora_layers": {"fractoin": 0.3}}, "Did you mean `fraction`?"),
    "bad value": ({"lora_layers": {"fraction": 7}}, "`fraction` is 7"),
    "unknown prefer": ({"lora_layers": {"prefer": "sped"}}, "Did you mean `speed`?"),
    "misspelt key": ({"lora_layers": None, "lora_layer": "auto"}, "Did you mean `lora_layers`?"),
    "weights on one rank": (
        {"fsdp_version": 2, "fsdp_config": {"cpu_ram_efficient_loading": True}, "lora_layers": "high"},
        "Choose by depth (`auto`, `uniform`, `last`)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_validation_refuses(validate, tmp_path, case):
    changes, message = REFUSED[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        validate(tmp_path, **changes)


def test_zero_3_prints_the_command_that_works(validate, tmp_path):
    zero3 = tmp_path / "zero3.json"
    zero3.write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    with pytest.raises(ValueError, match="ZeRO-3") as refused:
        validate(tmp_path, deepspeed=str(zero3))
    assert f"layercard plan --axolotl {tmp_path / 'config.yml'} -o placed.yml" in str(refused.value)


@pytest.mark.parametrize(
    "settings", [{}, {"zero_optimization": {}}, *({"zero_optimization": {"stage": n}} for n in (0, 1, 2))], ids=str
)
def test_other_stages_are_none_of_it(tmp_path, settings):
    file = tmp_path / "zero.json"
    file.write_text(json.dumps(settings))
    for deepspeed in (str(file), settings):
        refuse_configuration({"adapter": "lora", "lora_layers": "auto", "deepspeed": deepspeed})


DEEPSPEED = {
    "comment": ('{\n  // where\n  "zero_optimization": {"stage": 2}\n}', "is no JSON: .* line 2 column 3 .*comments"),
    "last comma": ('{"zero_optimization": {"stage": 2,}}', "is no JSON"),
    "no text": (b"\xff\xfe{}", "is no JSON"),
    "empty": ("", "is no JSON"),
    "auto": ('{"zero_optimization": {"stage": "auto"}}', '`stage` .* to "auto". DeepSpeed takes the numbers 0 to 3'),
    "word": ('{"zero_optimization": {"stage": "two"}}', 'to "two"'),
    "quoted": ('{"zero_optimization": {"stage": "2"}}', 'to "2".* without quotes'),
    "truth": ('{"zero_optimization": {"stage": true}}', "to true"),
    "stage 4": ('{"zero_optimization": {"stage": 4}}', "to 4"),
    "list": ("[2]", "no DeepSpeed settings"),
    "number": ('{"zero_optimization": 2}', "no DeepSpeed settings"),
}


@pytest.mark.parametrize("case", DEEPSPEED)
def test_what_is_no_deepspeed_file_is_one_clear_error(tmp_path, case):
    content, message = DEEPSPEED[case]
    file = tmp_path / "zero.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SettingsError, match=message) as refused:
        refuse_configuration({"adapter": "lora", "lora_layers": "auto", "deepspeed": str(file)})
    assert str(file) in str(refused.value)


def test_a_missing_deepspeed_file_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(SettingsError, match=r"`deepspeed` names nowhere/zero2\.json.*No such file"):
        refuse_configuration({"adapter": "lora", "lora_layers": "auto", "deepspeed": "nowhere/zero2.json"})


@pytest.mark.parametrize("targets", [r".*\.(q|v)_proj", "all-linear", ["q_proj", "mlp.down_proj"], None])
@pytest.mark.parametrize("kernels", [True, False, None])
def test_target_modules_pass_in_every_spelling(targets, kernels):
    refuse_configuration(
        {"adapter": "lora", "lora_layers": "auto", "lora_target_modules": targets, "lora_qkv_kernel": kernels}
    )


def test_an_adapter_to_go_on_from_is_refused_where_training_begins():
    with pytest.raises(SettingsError, match="`lora_model_dir`"):
        refuse_trained_adapter({"lora_model_dir": "somewhere"})


def test_commands_that_use_a_trained_adapter_pass(validate, tmp_path):
    cfg = validate(tmp_path, merge_lora=True, lora_model_dir="somewhere", load_in_4bit=False)
    assert cfg.lora_layers == "auto"


def test_the_command_stops_with_the_reason_and_leaves_nothing(folder, tmp_path):
    path = write(sft(folder, unfrozen_parameters=["model.norm"]), tmp_path / "out")
    finished = command("axolotl", "train", path)
    assert finished.returncode != 0
    assert "`lora_layers` and `unfrozen_parameters` are both given" in finished.stderr + finished.stdout
    assert not (tmp_path / "out" / "adapter_config.json").exists()
