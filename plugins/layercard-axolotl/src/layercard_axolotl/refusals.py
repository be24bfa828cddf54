"""Configurations of Axolotl in which layers cannot be placed, each refused in one line that says what works instead.

Reads plain mappings; knows nothing of models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from layercard import plugins
from layercard.errors import SettingsError, one_of
from layercard.placement.choose import needed_score
from layercard.settings import PlacementSettings
from layercard_axolotl.deepspeed_file import zero_stage

LORA = ("lora", "qlora")
PLACED_RL = (None, "dpo", "ipo", "kto")
"""The values of `rl` whose trainer layercard knows; None is supervised fine-tuning."""
_NOT_IN_NAMES = re.compile(r"[^\w.-]")
"""What a module's dotted name cannot hold, and a regular expression hardly does without."""
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
            "`lora_layers` and `unfrozen_parameters` are both given. After the adapter is built Axolotl freezes every parameter "
            "whose name these patterns do not match, the adapter's among them, and trains base weights where they do; placement "
            "trains the adapters of the chosen layers and nothing else. Drop one of the two keys; with an adapter, base weights "
            "are frozen anyway."
        )


def _refuse_targets(config: Mapping[str, Any]) -> None:
    targets = config.get("lora_target_modules")
    if isinstance(targets, str):
        try:
            re.compile(targets)
        except re.error as error:
            raise SettingsError(
                f"`lora_target_modules` is the text {targets!r}, which PEFT reads as a regular expression, and it is none: "
                f"{error}. Mend it, or give a list of module names."
            ) from None
    elif targets:
        expressions = [str(name) for name in targets if _NOT_IN_NAMES.search(str(name))]
        if expressions:
            raise SettingsError(
                f"`lora_target_modules` is a list that holds {expressions[0]!r}. PEFT compares the entries of a list with the "
                "ends of module names and reads no regular expressions there, so this one selects nothing. Give one text, such "
                f"as {'|'.join(_in_one_text(str(name)) for name in targets)!r}, or module names."
            )


def _in_one_text(entry: str) -> str:
    """An entry of a list as an alternative of one expression, which has to match whole names."""
    return entry if _NOT_IN_NAMES.search(entry) else f".*{re.escape(entry)}"


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
    stage = zero_stage(config.get("deepspeed"))
    if stage == 3:
        raise SettingsError(
            "DeepSpeed ZeRO-3 partitions the weights while they are loaded, so they cannot be probed. ZeRO-1 and ZeRO-2 work. "
            f"{_plan_first(config)}"
        )
    score = _score_read(config) if weights_on_one_rank(config) else None
    if score is not None:
        raise SettingsError(
            f"`lora_layers` reads the score `{score}`, and FSDP with `cpu_ram_efficient_loading` gives weights to the first rank "
            "alone, so the others have nothing to probe. Choose by depth (`auto`, `uniform`, `last`) or name the layers; or set "
            f"`cpu_ram_efficient_loading` to false where the weights fit into memory on every rank. {_plan_first(config)}"
        )


def weights_on_one_rank(config: Mapping[str, Any]) -> bool:
    """Whether FSDP loads the weights on the first rank alone, so that the others hold a model on the meta device."""
    fsdp = config.get("fsdp_config") or {}
    return any(fsdp.get(key) for key in ("cpu_ram_efficient_loading", "fsdp_cpu_ram_efficient_loading"))


def _score_read(config: Mapping[str, Any]) -> str | None:
    """The score that has to be probed for the choice that `lora_layers` asks for."""
    return needed_score(PlacementSettings.from_user(config["lora_layers"]), plugins.strategies(plugins.manager()))


def _plan_first(config: Mapping[str, Any]) -> str:
    path = config.get("axolotl_config_path") or "config.yml"
    return (
        f"Or choose the layers beforehand, `layercard plan --axolotl {path} -o placed.yml`, and train with placed.yml, in "
        "which Axolotl's own keys name them."
    )
