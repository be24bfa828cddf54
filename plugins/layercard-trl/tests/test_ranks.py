"""`layercard trl-sft` in two and four processes, which accelerate launches: placed as in one, written by the first alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from launched import timed

pytestmark = pytest.mark.xdist_group("torchrun")


def launched(processes: int) -> list[str]:
    """`--multi_gpu` makes accelerate start several processes; `--use_cpu` keeps them off GPUs."""
    several = ["--multi_gpu", "--num_machines", "1", "--main_process_port", "0"] if processes > 1 else []
    return [*several, "--num_processes", str(processes)]


def command(model_folder: Path, data_folder: Path, output: Path, *flags: str) -> list[str]:
    return [
        *(sys.executable, "-m", "layercard.cli.main", "trl-sft"),
        *("--model_name_or_path", str(model_folder), "--dataset_name", str(data_folder), "--output_dir", str(output)),
        *("--use_cpu", "--bf16", "false", "--max_length", "40", "--max_steps", "2", "--report_to", "none"),
        *("--per_device_train_batch_size", "2", "--use_peft", "--lora_target_modules", "all-linear"),
        *("--mixed_precision", "no", "--dynamo_backend", "no"),
        *flags,
    ]


def test_processes_place_as_one_and_the_first_one_writes(model_folder, data_folder, tmp_path):
    placed = []
    for processes in (1, 2, 4):
        name, flags = str(processes), [*launched(processes), "--lora_layers", "high"]
        done = timed(command(model_folder, data_folder, tmp_path / name, *flags), seconds=240)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stderr.count("Adapts layers") == 1
        report = json.loads((tmp_path / name / "report.json").read_text())
        assert report["partial"] is False
        assert report["run"]["training"]["processes"] == processes
        placed.append(json.loads((tmp_path / name / "placement.json").read_text()))
        config = json.loads((tmp_path / name / "adapter_config.json").read_text())
        assert config["layers_to_transform"] == placed[-1]["layers"]
    assert placed[0]["layers"] == placed[1]["layers"] == placed[2]["layers"]


def test_what_is_wrong_ends_both_with_its_message_and_code(model_folder, data_folder, tmp_path):
    flags = [*launched(2), "--lora_layers", "1,9"]
    done = timed(command(model_folder, data_folder, tmp_path / "out", *flags), seconds=240)
    assert done.returncode == 2, done.stderr[-3000:]
    for rank in (0, 1):
        assert f"Error: rank {rank}: `indices` holds layer 9" in done.stderr
    assert not (tmp_path / "out" / "adapter_config.json").exists()
