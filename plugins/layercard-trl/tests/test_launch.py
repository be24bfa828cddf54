from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from layercard.cli.main import main
from layercard_trl.launch import without

BASE = ["--use_cpu", "--bf16", "false", "--model_name_or_path", "nowhere", "--dataset_name", "nothing"]


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "layercard.cli.main", "trl-sft", *arguments],
        cwd=cwd, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


def training(model_folder: Path, data_folder: Path, output: Path) -> list[str]:
    return [
        *("--model_name_or_path", str(model_folder), "--dataset_name", str(data_folder), "--output_dir", str(output)),
        *("--use_cpu", "--bf16", "false", "--max_length", "40", "--max_steps", "2", "--report_to", "none"),
        *("--use_peft", "--lora_target_modules", "all-linear", "--num_processes", "1"),
    ]


def test_the_real_command_trains_and_leaves_its_files(model_folder, data_folder, tmp_path):
    flags = [*training(model_folder, data_folder, tmp_path / "out"), "--lora_layers", "auto"]
    finished = command(*flags, "--load_in_4bit", "--use_bnb_nested_quant", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    layers = json.loads((tmp_path / "out" / "placement.json").read_text())["layers"]
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["layers_to_transform"] == layers
    assert json.loads((tmp_path / "out" / "report.json").read_text())["partial"] is False


def test_an_error_inside_the_process_is_one_line_and_keeps_its_code(model_folder, data_folder, tmp_path):
    flags = [*training(model_folder, data_folder, tmp_path / "out"), "--lora_layers", "1,9"]
    finished = command(*flags, cwd=tmp_path)
    assert finished.returncode == 2
    assert "Traceback" not in finished.stderr
    assert "Error: `indices` holds layer 9" in finished.stderr.splitlines()[-1]
    assert not (tmp_path / "out" / "adapter_config.json").exists()


def test_help_lists_trl_and_layer_flags(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["trl-sft", "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert "usage: layercard trl-sft" in shown
    for flag in ("--lora_layers ", "--lora_layers_fraction", "--packing", "--load_in_4bit", "--datasets"):
        assert flag in shown


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--use_peft", "--lora_layerz", "auto"], "`--lora_layerz` is no argument"),
        (["--use_peft", "--lora_layers", "auto", "--packin_g"], "`--packin_g` is no argument"),
        (["--lora_layers", "auto"], "without `--use_peft`"),
        (["--use_peft", "--lora_layers", "5"], "bare number 5"),
        (["--use_peft", "--lora_layers", "auto", "--lora_layers_fraction", "7"], "`fraction` is 7.0"),
        (["--use_peft", "--lora_layers_fraction", "0.5"], "without `--lora_layers`"),
        (["--use_peft", "--lora_layers", "hgih"], "Did you mean `high`?"),
        (["--use_peft", "--lora_layers", "high", "--lora_layers_score", "resnrom"], "Did you mean `resnorm`?"),
        (["--use_peft", "--lora_layers", "last", "--lora_layers_score", "resnorm"], "reads no score"),
        (["--use_peft", "--lora_layers", "{strategy:high}"], "begins like a mapping and is none"),
        (["--use_peft", "--lora_layers", "{stratgy: high}"], "Did you mean `strategy`?"),
        (["--config", "missing.yaml"], "missing.yaml"),
        (["--use_peft", "--accelerate_config", "no-such"], "no-such"),
    ],
)
def test_wrong_flags_are_refused_before_anything_starts(flags, message, capsys):
    assert main(["trl-sft", *BASE, *flags]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("Error: ")
    assert message in lines[-1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lora_layers", "no/placement.json"], "no/placement.json does not exist"),
        (["--lora_layers", "auto", "--lora_layers_cards", "no/card"], "no Layer Card `no/card`"),
    ],
)
def test_a_file_that_is_not_there_is_refused_before_anything_starts(flags, message, capsys):
    assert main(["trl-sft", *BASE, "--use_peft", *flags]) == 1
    assert message in capsys.readouterr().err


def test_every_process_checks_its_flags_before_it_loads_a_model(tmp_path):
    """As `accelerate launch -m layercard_trl.sft …` starts them; the model that is named does not exist either."""
    flags = [*BASE, "--use_peft", "--lora_layers", "hgih"]
    done = subprocess.run([sys.executable, "-m", "layercard_trl.sft", *flags], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("Error: `strategy` is 'hgih'")


def test_an_interrupted_process_ends_the_command_with_130(tmp_path):
    """The launched process gets SIGINT before it does anything, as from Ctrl-C."""
    (tmp_path / "sitecustomize.py").write_text(
        "import signal, sys\n"
        "if 'layercard_trl.sft' in sys.orig_argv:\n"
        "    signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
        "    signal.raise_signal(signal.SIGINT)\n"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "layercard", "trl-sft", *BASE, "--use_peft", "--lora_layers", "auto"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 130, done.stderr


def test_wrong_choice_is_wrong_usage(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["trl-sft", *BASE, "--use_peft", "--lora_layers", "auto", "--lora_layers_prefer", "cheap"])
    assert stopped.value.code == 2
    assert "cheap" in capsys.readouterr().err


def test_misspelt_yaml_key_is_refused(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text("use_peft: true\nlora_layers_fractoin: 0.3\n")
    assert main(["trl-sft", *BASE, "--config", str(path)]) == 2
    assert "Did you mean `--lora_layers_fraction`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "left_over", "kept"),
    [
        (["--a", "1", "--num_processes", "2"], ["--num_processes", "2"], ["--a", "1"]),
        (["--a", "2", "--num_processes", "2"], ["--num_processes", "2"], ["--a", "2"]),
        (["--a", "1"], [], ["--a", "1"]),
    ],
)
def test_launch_arguments_are_taken_out(arguments, left_over, kept):
    assert without(arguments, left_over) == kept


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--use_cpu"], "`--dataset_name` is missing"),
        (["--use_cpu", "--dataset_name", "nothing", "--output_dir", "FILE"], "which is a file. Give a folder"),
        (["--config", "FILE"], "The arguments cannot be used"),
    ],
)
def test_what_trl_ends_with_a_traceback_is_one_line(flags, message, tmp_path, capsys):
    file = tmp_path / "file.yaml"
    file.write_text("a: [1\nb: }\n")
    given = [str(file) if flag == "FILE" else flag for flag in flags]
    assert main(["trl-sft", "--bf16", "false", "--model_name_or_path", "nowhere", *given]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("Error: ")
    assert message in lines[-1]


def test_a_machine_without_a_gpu_is_told_the_flag(monkeypatch, capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert main(["trl-sft", "--model_name_or_path", "nowhere", "--dataset_name", "nothing"]) == 2
    assert "add `--use_cpu`" in capsys.readouterr().err
