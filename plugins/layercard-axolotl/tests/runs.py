"""Axolotl configurations for tiny runs, the real commands that run them, and what they leave behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

PLUGIN = "layercard_axolotl.LayerCardPlugin"
KERNELS_OFF = dict.fromkeys(("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel"), False)
BY_ENTRY_POINT = tuple(map(int, version("axolotl").split(".")[:2])) >= (0, 21)
"""Whether this is Axolotl 0.21 or later, which loads plugins that no line names."""
BIN = Path(sys.executable).parent
ENVIRONMENT = {
    "AXOLOTL_DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def sft(folder: Path, **changes: Any) -> dict[str, Any]:
    """Return a supervised LoRA run of six steps over the data and model of `folder`; None takes a key out."""
    values = {
        "base_model": str(folder / "model"),
        "plugins": [PLUGIN],
        "lora_layers": "auto",
        "adapter": "lora",
        "lora_r": 4,
        "lora_alpha": 8,
        "lora_target_linear": True,
        **KERNELS_OFF,
        "datasets": [_instructions(folder)],
        "dataset_prepared_path": str(folder / "prepared"),
        "sequence_len": 128,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "num_epochs": 2,
        "max_steps": 6,
        "learning_rate": 0.01,
        "optimizer": "adamw_torch",
        "lr_scheduler": "constant",
        "bf16": False,
        "attn_implementation": "sdpa",
        # 0 is this process alone, which Axolotl's packing does not take; 1 starts another, which imports everything again.
        "dataset_num_proc": 1 if changes.get("sample_packing") else 0,
        "dataloader_pin_memory": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "seed": 7,
    }
    return {key: value for key, value in (values | changes).items() if value is not None}


def dpo(folder: Path, **changes: Any) -> dict[str, Any]:
    data = {"path": str(folder / "dpo.jsonl"), "ds_type": "json", "split": "train", "type": "chatml.intel"}
    return sft(folder, **({"rl": "dpo", "datasets": [data], "chat_template": "chatml"} | changes))


def kto(folder: Path, **changes: Any) -> dict[str, Any]:
    data = {"path": str(folder / "kto.jsonl"), "ds_type": "json", "split": "train", "type": "chatml.intel"}
    return sft(
        folder,
        **({"rl": "kto", "datasets": [data], "chat_template": "chatml", "remove_unused_columns": False} | changes),
    )


def _instructions(folder: Path) -> dict[str, Any]:
    columns = {"field_instruction": "instruction", "field_output": "output"}
    shape = {"format": "{instruction}: ", "no_input_format": "{instruction}: "}
    return {"path": str(folder / "sft.jsonl"), "ds_type": "json", "type": {**columns, **shape}}


def write(config: dict[str, Any], output: Path, name: str = "config.yml") -> Path:
    """Write the configuration beside its output folder and return its path."""
    output.parent.mkdir(parents=True, exist_ok=True)
    path = output.parent / name
    path.write_text(yaml.safe_dump({**config, "output_dir": str(output)}, sort_keys=False))
    return path


def command(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the environment, such as `axolotl train config.yml`."""
    return subprocess.run(
        [str(BIN / arguments[0]), *map(str, arguments[1:])],
        env={**os.environ, **ENVIRONMENT, "PATH": f"{BIN}:{os.environ['PATH']}", **environment},
        capture_output=True, text=True, check=False, timeout=550,
    )  # fmt: skip


def train_here(path: Path) -> Any:
    """Train in this process by what `axolotl train` runs in its own; return the placed run, None without one."""
    from axolotl.cli.train import do_cli
    from axolotl.integrations.base import PluginManager

    argv, sys.argv = sys.argv, ["axolotl"]
    try:
        do_cli(config=str(path))
    finally:
        sys.argv = argv
    return PluginManager.get_instance().plugins[PLUGIN].run


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def adapter(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "adapter_model.safetensors")


def expected_names(layers: tuple[int, ...] | list[int], targets: tuple[str, ...] = LINEAR) -> set[str]:
    """Names of the tensors in an adapter file on these layers and no others."""
    rooms = {name: "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "self_attn" for name in targets}
    return {
        f"base_model.model.model.layers.{layer}.{rooms[name]}.{name}.lora_{factor}.weight"
        for layer in layers for name in targets for factor in "AB"
    }  # fmt: skip


def check_files(output: Path, layers: list[int], targets: tuple[str, ...] = LINEAR) -> dict[str, Any]:
    """Assert that what a run left is an adapter trained on `layers` alone, and a finished report; return the report."""
    assert read_json(output / "placement.json")["layers"] == layers
    tensors = adapter(output)
    assert set(tensors) == expected_names(layers, targets)
    assert all(bool(tensor.any()) for name, tensor in tensors.items() if "lora_B" in name)
    assert read_json(output / "adapter_config.json")["layers_to_transform"] == layers
    report = read_json(output / "report.json")
    assert report["layers"] == layers
    assert report["partial"] is False
    return report
