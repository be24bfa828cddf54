"""What `layercard doctor` says of Axolotl: what `axolotl train` runs, over the toy, and which of the plugin's hooks it called.

A release of Axolotl that calls a hook no more, or finds the plugin no more, is told by the layers that did not learn.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layercard.doctor import toy
from layercard.doctor.check import Check, failed
from layercard.files import write_text

if TYPE_CHECKING:
    from layercard.pipeline.placed_run import PlacedRun

NAME = "Axolotl run"
PLUGIN = "layercard_axolotl.LayerCardPlugin"
ADVICE = "Install a tested release of Axolotl; until then a run may adapt every layer. Look for placement.json."
NOT_TRACKED = "AXOLOTL_DO_NOT_TRACK"


def check_run(folder: Path) -> Check:
    """Return whether Axolotl found the plugin and called it, and whether the placed layers alone learned."""
    config = toy_configuration(folder)
    with toy.silence(), _untracked():
        from layercard_axolotl.plugin import LayerCardPlugin

        with called_hooks(LayerCardPlugin) as called:
            run = _trained(config)
    if run is None:
        hooks = ", ".join(dict.fromkeys(called)) or "none"
        return failed(NAME, f"nothing was placed; hooks of layercard's plugin that were called: {hooks}", ADVICE)
    check = toy.check_host(NAME, run)
    return replace(check, found=f"{check.found}; hooks called: {', '.join(dict.fromkeys(called))}")


def toy_configuration(folder: Path) -> Path:
    """Write the toy's model, tokenizer, tokenized rows and a configuration into `folder`; return the configuration."""
    from layercard.testing.material import tiny_llama

    model, rows, path = folder / "model", folder / "rows.jsonl", folder / "config.yml"
    with toy.silence():
        tiny_llama(toy.LAYERS).save_pretrained(model)  # type: ignore[operator]
        toy.tokenizer().save_pretrained(model)
    masks = [{"attention_mask": [1] * len(row["input_ids"]), **row} for row in toy.rows()]
    write_text(rows, "".join(f"{json.dumps(row)}\n" for row in masks))
    values: dict[str, Any] = {
        "base_model": str(model),
        "plugins": [PLUGIN],
        "lora_layers": toy.WANTED | {"measure": False, "guard": False},
        "adapter": "lora",
        "lora_r": 4,
        "lora_alpha": 8,
        "lora_target_linear": True,
        **dict.fromkeys(("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel"), False),
        "datasets": [{"path": str(rows), "ds_type": "json", "type": None}],
        "dataset_prepared_path": str(folder / "prepared"),
        "dataset_num_proc": 0,
        "dataloader_pin_memory": False,
        "sequence_len": 64,
        "micro_batch_size": toy.BATCH,
        "gradient_accumulation_steps": 1,
        "max_steps": toy.STEPS,
        "learning_rate": 0.01,
        "optimizer": "adamw_torch",
        "lr_scheduler": "constant",
        "bf16": False,
        "attn_implementation": "sdpa",
        "save_strategy": "no",
        "output_dir": str(folder / "out"),
    }
    write_text(path, json.dumps(values))  # JSON is YAML
    return path


@contextmanager
def called_hooks(plugin: type) -> Iterator[list[str]]:
    """Yield the list that collects the names of the plugin's hooks as they are called."""
    called: list[str] = []
    hooks = {name: hook for name, hook in vars(plugin).items() if callable(hook) and not name.startswith("_")}
    for name, hook in hooks.items():
        setattr(plugin, name, _noting(name, hook, called))
    try:
        yield called
    finally:
        for name, hook in hooks.items():
            setattr(plugin, name, hook)


def _noting(name: str, hook: Any, called: list[str]) -> Any:
    @wraps(hook)
    def noted(*args: Any, **kwargs: Any) -> Any:
        called.append(name)
        return hook(*args, **kwargs)

    return noted


def _trained(config: Path) -> PlacedRun | None:
    """Train as `axolotl train` does in its own process; return the placed run, None where the plugin was not found."""
    from axolotl.cli.train import do_cli
    from axolotl.integrations.base import PluginManager

    argv, sys.argv = sys.argv, ["axolotl"]
    try:
        do_cli(config=str(config))
    finally:
        sys.argv = argv
    plugin = PluginManager.get_instance().plugins.get(PLUGIN)
    run: PlacedRun | None = None if plugin is None else plugin.run
    return run


@contextmanager
def _untracked() -> Iterator[None]:
    """Axolotl tells its makers of runs, which a check is none of."""
    before = os.environ.get(NOT_TRACKED)
    os.environ[NOT_TRACKED] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[NOT_TRACKED]
        else:
            os.environ[NOT_TRACKED] = before
