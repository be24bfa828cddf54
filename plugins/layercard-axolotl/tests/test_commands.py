"""The real commands, each in processes of its own: `axolotl preprocess`, `train`, `merge-lora`, and several ranks."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from runs import BIN, BY_ENTRY_POINT, PLUGIN, adapter, check_files, command, dpo, read_json, sft, write
from safetensors.torch import load_file


def test_preprocess_train_resume_and_merge_with_packing(folder, tmp_path):
    output = tmp_path / "out"
    config = sft(
        folder, sample_packing=True, pad_to_sequence_len=True, val_set_size=0.25, eval_steps=3,
        save_strategy="steps", save_steps=3,
        gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": True},
        dataset_prepared_path=str(tmp_path / "prepared"),
    )  # fmt: skip
    path = write(config, output)
    prepared = command("axolotl", "preprocess", path)
    assert prepared.returncode == 0, prepared.stderr
    assert not (output / "placement.json").exists()

    trained = command("axolotl", "train", path)
    assert trained.returncode == 0, trained.stderr
    report = check_files(output, [1, 3])
    assert report["gradient_entry"]["moved"] is True
    assert report["backward_layers"] == [1, 2, 3]
    assert "Adapted: layers" in trained.stdout
    assert trained.stdout.count("Adapted: layers") == 1

    merged = command("axolotl", "merge-lora", path)
    assert merged.returncode == 0, merged.stderr
    assert _changed_layers(folder / "model", output / "merged") == {1, 3}

    final = load_file(output / "adapter_model.safetensors")
    shutil.rmtree(output / "checkpoint-6")
    resumed = command("axolotl", "train", write({**config, "auto_resume_from_checkpoints": True}, output))
    assert resumed.returncode == 0, resumed.stderr
    assert check_files(output, [1, 3])["planned_steps"] == 3
    again = load_file(output / "adapter_model.safetensors")
    for name, tensor in final.items():
        torch.testing.assert_close(again[name], tensor, msg=name)


def test_qlora_on_given_layers(folder, tmp_path):
    config = sft(
        folder, adapter="qlora", load_in_4bit=True, lora_layers=[2, 3], lora_target_linear=None,
        lora_target_modules=["q_proj", "v_proj", "down_proj"], gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )  # fmt: skip
    trained = command("axolotl", "train", write(config, tmp_path / "out"))
    assert trained.returncode == 0, trained.stderr
    report = check_files(tmp_path / "out", [2, 3], ("q_proj", "v_proj", "down_proj"))
    assert report["backward_layers"] == [2, 3]


def test_fused_kernels_build_the_adapter_on_the_chosen_layers(folder, tmp_path):
    """Axolotl's fused attention kernels run on a CPU; its MLP kernel asks for CUDA."""
    config = sft(folder, lora_qkv_kernel=True, lora_o_kernel=True, lora_layers={"strategy": "high", "num_layers": 2})
    trained = command("axolotl", "train", write(config, tmp_path / "out"))
    assert trained.returncode == 0, trained.stderr
    layers = read_json(tmp_path / "out" / "placement.json")["layers"]
    report = check_files(tmp_path / "out", layers)
    assert report["backward_layers"] == list(range(layers[0], 4))
    assert report["baseline"] == {
        "step_seconds": None,
        "peak_bytes": None,
        "trainable_parameters": None,
        "step_seconds_spread": None,
    }
    assert "built on the chosen layers alone" in report["unavailable"]["step_speedup"]
    assert report["probe_seconds"] > 0


def test_fused_kernels_and_no_row_left(folder, tmp_path):
    config = sft(folder, lora_o_kernel=True, lora_layers="high", sequence_len=4)
    trained = command("axolotl", "train", write(config, tmp_path / "out"))
    assert trained.returncode != 0
    assert "longer than `sequence_len` (4)" in trained.stderr + trained.stdout


def test_dpo(folder, tmp_path):
    config = dpo(folder, gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False})
    trained = command("axolotl", "train", write(config, tmp_path / "out"))
    assert trained.returncode == 0, trained.stderr
    check_files(tmp_path / "out", [1, 3])


WITHOUT_A_LINE = pytest.mark.skipif(not BY_ENTRY_POINT, reason="Axolotl 0.21 and later")


@WITHOUT_A_LINE
@pytest.mark.parametrize("plugins", [None, ["layercard_axolotl:LayerCardPlugin"]], ids=["no line", "as in metadata"])
def test_the_plugin_is_found_by_its_entry_point(folder, tmp_path, plugins):
    """Once, where a line names it as well: the second registration would begin the run anew."""
    path = write(sft(folder, plugins=plugins, lora_layers=[3]), tmp_path / "out")
    trained = command("axolotl", "train", path)
    assert trained.returncode == 0, trained.stderr
    assert check_files(tmp_path / "out", [3])["backward_layers"] == [3]
    assert trained.stdout.count("Adapted: layer") == 1


@WITHOUT_A_LINE
def test_a_misspelt_line_stops_the_command(folder, tmp_path):
    path = write(sft(folder, plugins=["layercard_axolotl.LayercardPlugin"]), tmp_path / "out")
    trained = command("axolotl", "train", path)
    assert trained.returncode != 0
    assert "has no attribute 'LayercardPlugin'" in trained.stderr + trained.stdout
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()


ON_CPU = '''
"""Axolotl gives every rank a device of its own number, which a machine without accelerators has not.

It also asks whether devices reach one another, which torch's builds for CUDA answer with an error where there is no driver.
"""
import os
from pathlib import Path

import torch
from axolotl.integrations.base import BasePlugin
from safetensors.torch import save_file

torch.cuda.can_device_access_peer = lambda *devices: True


class OnCpu(BasePlugin):
    def register(self, cfg):
        if os.environ["RANK"] == "1" and "SECOND_RANK" in os.environ:
            cfg["lora_layers"] = [0, 1]

    def load_datasets(self, cfg, preprocess=False):
        cfg.device_map = {"": "cpu"}

    def post_train(self, cfg, model):
        trained = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
        save_file(trained, Path(__file__).with_name(f"rank-{os.environ['RANK']}.safetensors"))
'''


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("ranks", "named"), [(2, True), (4, True), pytest.param(2, False, marks=WITHOUT_A_LINE)])
def test_ranks_make_one_placement_one_adapter_and_one_report(folder, tmp_path, ranks, named):
    trained = _on_ranks(ranks, folder, tmp_path, {"strategy": "high", "num_layers": 2}, named=named)
    assert trained.returncode == 0, trained.stderr
    check_files(tmp_path / "out", read_json(tmp_path / "out" / "placement.json")["layers"])
    assert trained.stdout.count("Adapted: layers") == 1
    saved = adapter(tmp_path / "out")
    for rank in range(ranks):
        held = load_file(tmp_path / f"rank-{rank}.safetensors")
        assert {name.replace(".default", ""): value.tolist() for name, value in held.items()} == {
            name: value.tolist() for name, value in saved.items()
        }


def test_ranks_that_chose_differently_all_stop(folder, tmp_path):
    trained = _on_ranks(2, folder, tmp_path, [2, 3], SECOND_RANK="differs")
    assert trained.returncode != 0
    assert (trained.stderr + trained.stdout).count("PlacementError") >= 2
    assert not (tmp_path / "out" / "placement.json").exists()
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()


def _on_ranks(
    ranks: int, folder: Path, tmp_path: Path, lora_layers: object, *, named: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    (tmp_path / "on_cpu.py").write_text(ON_CPU)
    lines = ["on_cpu.OnCpu"] + [PLUGIN] * named
    path = write(sft(folder, plugins=lines, lora_layers=lora_layers), tmp_path / "out")
    return command(
        "torchrun", "--standalone", "--nproc_per_node", str(ranks), "-m", "axolotl.cli.train", path,
        PYTHONPATH=str(tmp_path), ACCELERATE_USE_CPU="true", **environment,
    )  # fmt: skip


def _changed_layers(base: Path, merged: Path) -> set[int]:
    before, after = (load_file(path / "model.safetensors") for path in (base, merged))
    changed = [
        name for name, tensor in before.items() if not torch.allclose(tensor.float(), after[name].float(), atol=1e-6)
    ]
    assert all(".layers." in name for name in changed)
    return {int(name.split(".layers.")[1].split(".")[0]) for name in changed}


def test_the_commands_are_those_of_this_environment():
    assert (BIN / "axolotl").exists()
