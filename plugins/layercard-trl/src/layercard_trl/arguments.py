"""The TRL flags: `--lora_layers` and every other placement setting behind the prefix `lora_layers_`.

`LayerArguments` is generated from `PlacementSettings`, so that a setting added there is a flag here with the same
help. It knows TRL's parser only by the types that the parser can turn into flags.
"""

from __future__ import annotations

from dataclasses import Field, field, fields, make_dataclass
from typing import Any, get_type_hints

from layercard.errors import SettingsError
from layercard.settings import PlacementSettings

FLAG = "lora_layers"
PREFIX = f"{FLAG}_"


def _flag_name(setting: str) -> str:
    return setting if setting == FLAG else f"{PREFIX}{setting}"


def _to_settings(arguments: Any) -> PlacementSettings | None:
    """Return the settings that the flags say, validated, or None where `--lora_layers` is absent.

    Raises `SettingsError` where a value is wrong, or where a `--lora_layers_…` flag stands without `--lora_layers`.
    """
    changed = {
        setting.name: getattr(arguments, _flag_name(setting.name))
        for setting in fields(PlacementSettings)
        if setting.name != FLAG and getattr(arguments, _flag_name(setting.name)) != setting.default
    }
    if arguments.lora_layers is not None:
        return PlacementSettings.from_user(arguments.lora_layers, **changed)
    if changed:
        raise SettingsError(
            f"`--{_flag_name(next(iter(changed)))}` is given without `--{FLAG}`, so every layer would be adapted. Add "
            f"`--{FLAG} auto` (or a strategy, indices, a placement.json), or drop the flag."
        )
    return None


def _flag(setting: Field[Any], kind: Any) -> tuple[str, Any, Any]:
    if setting.name != FLAG:
        return _flag_name(setting.name), kind, field(default=setting.default, metadata=dict(setting.metadata))
    help_text = f"{setting.metadata['help']} Without this flag every layer is adapted, as in `trl sft`."
    return FLAG, str | None, field(default=None, metadata={"help": help_text})


def _generated() -> Any:
    kinds = get_type_hints(PlacementSettings)
    return make_dataclass(
        "LayerArguments",
        [_flag(setting, kinds[setting.name]) for setting in fields(PlacementSettings)],
        namespace={
            "__doc__": "The placement settings as TRL flags.",
            "_argument_group_name": "which layers are adapted (layercard)",  # HfArgumentParser's heading in --help
            "to_settings": _to_settings,
        },
    )


LayerArguments: Any = _generated()
