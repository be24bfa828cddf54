from __future__ import annotations

from dataclasses import fields

import pytest

from layercard.errors import SettingsError
from layercard.settings import PlacementSettings
from layercard_trl.arguments import LayerArguments
from layercard_trl.sft import make_parser, parse

BASE = ["--use_cpu", "--model_name_or_path", "m", "--dataset_name", "d"]


def settings(*flags: str) -> PlacementSettings | None:
    values, from_file, from_line = parse([*BASE, *flags])
    assert not from_file
    assert not from_line
    return values[-1].to_settings()


def test_every_setting_is_a_flag_with_its_help():
    actions = {action.dest: action for action in make_parser()._actions}
    for setting in fields(PlacementSettings):
        flag = setting.name if setting.name == "lora_layers" else f"lora_layers_{setting.name}"
        assert actions[flag].help.startswith(setting.metadata["help"])


def test_takes_what_trl_sft_takes():
    from trl.scripts.sft import make_parser as trl_parser

    ours, theirs = make_parser(), trl_parser()
    own = {field.name for field in fields(LayerArguments)}
    assert {action.dest for action in ours._actions} == {action.dest for action in theirs._actions} | own


def test_without_the_flag_there_are_no_settings():
    assert settings() is None


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--lora_layers", "auto"], {"lora_layers": "auto"}),
        (["--lora_layers", "uniform", "--lora_layers_fraction", "0.3"], {"strategy": "uniform", "fraction": 0.3}),
        (["--lora-layers", "1,3"], {"indices": [1, 3]}),
        (["--lora_layers", "auto", "--lora_layers_indices", "1", "3"], {"indices": [1, 3]}),
        (["--lora_layers", "auto", "--no_lora_layers_measure"], {"measure": False}),
        (["--lora_layers", "last", "--lora_layers_num_layers", "2"], {"strategy": "last", "num_layers": 2}),
        (["--lora_layers", "auto", "--lora_layers_prefer", "speed"], {"prefer": "speed"}),
        (["--lora_layers", "{strategy: mid, fraction: 0.5}"], {"strategy": "mid", "fraction": 0.5}),
        (["--lora_layers", '{"indices": [1, 3], "guard": false}'], {"indices": [1, 3], "guard": False}),
        (["--lora_layers", "auto", "--lora_layers_budget", "0.6"], {"strategy": "budget", "budget": 0.6}),
    ],
)
def test_flags_become_settings(flags, expected):
    made = settings(*flags)
    assert {name: getattr(made, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lora_layers", "3"], "bare number 3"),
        (["--lora_layers_fraction", "0.3"], "without `--lora_layers`"),
        (["--lora_layers", "auto", "--lora_layers_fraction", "2"], "`fraction` is 2.0"),
        (["--lora_layers", "1,1"], "layer 1 twice"),
        (["--lora_layers", "-1,2"], "-1"),
    ],
)
def test_wrong_values_name_the_field(flags, message):
    flags = [f"--lora_layers={flags[1]}", *flags[2:]] if flags[0] == "--lora_layers" else flags
    with pytest.raises(SettingsError, match=message):
        settings(*flags)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lora_layers: [1, 3]", {"indices": [1, 3]}),
        ("lora_layers: auto\nlora_layers_min_entry: 2", {"min_entry": 2}),
        ("lora_layers: {strategy: uniform, fraction: 0.5, min_entry: 1}", {"strategy": "uniform", "min_entry": 1}),
    ],
)
def test_yaml_says_what_python_says(tmp_path, text, expected):
    path = tmp_path / "run.yaml"
    path.write_text(f"{text}\n")
    made = settings("--config", str(path))
    assert {name: getattr(made, name) for name in expected} == expected


def test_flag_wins_over_yaml(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("lora_layers: last\nlora_layers_num_layers: 2\n")
    assert settings("--config", str(path), "--lora_layers_num_layers", "3").num_layers == 3


def test_bare_number_in_yaml_is_refused(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("lora_layers: 5\n")
    with pytest.raises(SettingsError, match="bare number 5"):
        settings("--config", str(path))
