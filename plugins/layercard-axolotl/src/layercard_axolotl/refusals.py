"""Configurations of Axolotl in which layers cannot be placed, each refused in one line that says what works instead.

Reads plain mappings; knows nothing of models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layercard.errors import SettingsError, one_of

LORA = ("lora", "qlora")
PLACED_RL = (None, "dpo", "ipo", "kto")
"""The values of `rl` whose trainer layercard knows; None is supervised fine-tuning."""
OWN_CHOICE = ("peft_layers_to_transform", "peft_layers_pattern")


def refuse_configuration(config: Mapping[str, Any]) -> None:
    """Raise `SettingsError` where `lora_layers` stands beside something that it cannot work with.

    Commands that only use a trained adapter (`merge-lora`, `inference`) pass.
    """
    if config.get("merge_lora") or config.get("inference"):
        return
    refuse_choice(config)
    _refuse_trainer(config)
    _refuse_sharded_weights(config)


def refuse_choice(config: Mapping[str, Any]) -> None:
    """Raise `SettingsError` where layers cannot be chosen for the adapter, in whatever way it is trained."""
    _refuse_adapter(config)
    _refuse_own_choice(config)
    _refuse_targets(config)


def refuse_trained_adapter(config: Mapping[str, Any]) -> None:
    """Raise `SettingsError` where training would go on from an adapter; only a training run can be asked.

    `merge-lora` and `inference` name their adapter by the same key, so validation cannot tell them apart.
    """
    if config.get("lora_model_dir"):
        raise SettingsError(
            f"`lora_layers` and `lora_model_dir` ({config['lora_model_dir']}) are both given. Layers are chosen for new "
            "adapters; the loaded one has its layers already. To go on with a run use `resume_from_checkpoint`, which keeps "
            "its placement; otherwise drop one of the two keys."
        )


def _refuse_adapter(config: Mapping[str, Any]) -> None:
    adapter = config.get("adapter")
    if adapter not in LORA:
        found = "there is no `adapter`, so all weights train" if not adapter else f"`adapter` is {adapter!r}"
        raise SettingsError(
            f"`lora_layers` is given and {found}. Placement works on LoRA: set `adapter` to {one_of(LORA)}, or drop the key."
        )
    if config.get("relora"):
        raise SettingsError(
            "`lora_layers` and `relora` are both given. ReLoRA merges adapters into the base weights while it trains, which "
            "placement does not support. Drop one of them."
        )


def _refuse_own_choice(config: Mapping[str, Any]) -> None:
    for key in OWN_CHOICE:
        if config.get(key) is not None:
            raise SettingsError(
                f"`lora_layers` and `{key}` ({config[key]!r}) are both given, and both choose layers. Keep one; your own "
                "layers can stand in `lora_layers: [...]`, which also ends backpropagation at the lowest of them."
            )
    if config.get("unfrozen_parameters"):
        raise SettingsError(
            "`lora_layers` and `unfrozen_parameters` are both given. Base weights that train beside adapters can lie below "
            "the adapted layers, where placement expects nothing to train. Drop one of the two keys."
        )


def _refuse_targets(config: Mapping[str, Any]) -> None:
    targets = config.get("lora_target_modules")
    if isinstance(targets, str) and targets != "all-linear":
        raise SettingsError(
            f"`lora_target_modules` is the text {targets!r}, which PEFT reads as a regular expression that knows no layers. "
            "With `lora_layers` give a list of module names, `all-linear`, or `lora_target_linear: true`."
        )


def _refuse_trainer(config: Mapping[str, Any]) -> None:
    kind = config.get("rl")
    kind = None if kind is None else str(getattr(kind, "value", kind))
    if kind not in PLACED_RL:
        raise SettingsError(
            f"`rl` is {kind!r}, whose trainer layercard cannot probe or measure. Supported are supervised fine-tuning and "
            f"{one_of(str(name) for name in PLACED_RL if name)}. {_plan_first(config)}"
        )
    for key in ("reward_model", "process_reward_model"):
        if config.get(key):
            raise SettingsError(f"`{key}` trains a reward head, which layercard cannot probe. {_plan_first(config)}")


def _refuse_sharded_weights(config: Mapping[str, Any]) -> None:
    fsdp = config.get("fsdp_config") or {}
    if any(fsdp.get(key) for key in ("cpu_ram_efficient_loading", "fsdp_cpu_ram_efficient_loading")):
        raise SettingsError(
            "FSDP with `cpu_ram_efficient_loading` gives weights to the first rank alone, so the others have nothing to "
            f"probe. Set it to false where the weights fit into memory on every rank. {_plan_first(config)}"
        )
    if _zero_stage(config.get("deepspeed")) == 3:
        raise SettingsError(
            "DeepSpeed ZeRO-3 partitions the weights while they are loaded, so they cannot be probed. ZeRO-1 and ZeRO-2 work. "
            f"{_plan_first(config)}"
        )


def _zero_stage(deepspeed: Any) -> int | None:
    """Return the stage that the configuration, or the file that it names, asks for."""
    if isinstance(deepspeed, str):
        path = Path(deepspeed)
        if not path.is_file():
            return None  # Axolotl says so itself
        deepspeed = json.loads(path.read_text(encoding="utf-8"))
    stage = ((deepspeed or {}).get("zero_optimization") or {}).get("stage")
    return None if stage is None else int(stage)


def _plan_first(config: Mapping[str, Any]) -> str:
    path = config.get("axolotl_config_path") or "config.yml"
    return (
        f"Or choose the layers beforehand, `layercard plan --axolotl {path} -o placed.yml`, and train with placed.yml, in "
        "which Axolotl's own `peft_layers_to_transform` holds them."
    )
