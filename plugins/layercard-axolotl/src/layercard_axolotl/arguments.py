"""`LayerCardArgs`: the YAML key `lora_layers`, checked while Axolotl validates its configuration.

Axolotl merges this class into its own schema, so that the checks here run before anything is loaded.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field, model_validator

from layercard.errors import SettingsError
from layercard.settings import PlacementSettings
from layercard_axolotl.asked import KEY
from layercard_axolotl.refusals import refuse_configuration


class LayerCardArgs(BaseModel):
    """What layercard adds to an Axolotl configuration."""

    lora_layers: Any = Field(
        default=None,
        json_schema_extra={
            "description": "Which layers to adapt: `auto`, a strategy's name, a list of layer indices, the path of a "
            "placement.json, or a mapping of placement settings."
        },
    )

    @model_validator(mode="before")
    @classmethod
    def check_lora_layers(cls, data: Any) -> Any:
        """Refuse a wrong key, and configurations in which layers cannot be placed."""
        if settings_of(data) is None:
            _refuse_misspelt(data, known=cls.model_fields)
        else:
            refuse_configuration(data)
        return data


def settings_of(config: Mapping[str, Any]) -> PlacementSettings | None:
    """Return the settings that the configuration holds, None without the key; raise `SettingsError` if it is wrong."""
    value = config.get(KEY)
    return None if value is None else PlacementSettings.from_user(value)


def _refuse_misspelt(data: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Axolotl drops keys that it does not know, so a misspelt one would train every layer without a word."""
    for key in data:
        if key not in known and difflib.get_close_matches(str(key), [KEY], cutoff=0.75):
            raise SettingsError(f"`{key}` is no key of Axolotl or layercard. Did you mean `{KEY}`?")
