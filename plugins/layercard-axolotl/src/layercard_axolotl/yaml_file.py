"""`ConfigFile`: a user's YAML file, in which layers are written and nothing else changes.

Keys are located by a parser that knows their lines; the text around them is kept as it is, comments included.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError

from layercard.errors import SettingsError

KEY, LAYERS, PATTERN = "lora_layers", "peft_layers_to_transform", "peft_layers_pattern"
BESIDE = "adapter"
"""The key after which layers are written where `lora_layers` is not there."""


@dataclass(frozen=True)
class ConfigFile:
    """The text of a configuration and what it says."""

    path: Path
    text: str
    values: CommentedMap

    @classmethod
    def read(cls, path: Path) -> ConfigFile:
        """Read the file; raise `SettingsError` where it is no YAML mapping of one key a line."""
        text = path.read_text(encoding="utf-8")
        try:
            values = YAML().load(text)
        except YAMLError as error:
            raise SettingsError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
        if not isinstance(values, CommentedMap) or values.fa.flow_style():
            raise SettingsError(f"{path} is no Axolotl configuration: one key a line, such as `base_model: …`.")
        return cls(path, text, values)

    def with_layers(self, layers: list[int], pattern: str, reason: str) -> str:
        """Return the text with the layers in Axolotl's own keys in place of `lora_layers`, and a comment that says why."""
        comment = [f"# {line}" for line in textwrap.wrap(reason, 98)]
        written = [*comment, f"{LAYERS}: {layers}", f"{PATTERN}: [{pattern}]"]
        lines = self.text.splitlines()
        if KEY in self.values:
            start, end = self._lines_of(KEY, lines)
            lines[start:end] = written
        else:
            _, end = self._lines_of(BESIDE, lines)
            lines[end:end] = written
        return "\n".join(lines) + "\n"

    def _lines_of(self, key: str, lines: list[str]) -> tuple[int, int]:
        """Return the first line of a key and the one after its value; comments before the next key belong to that."""
        start: int = self.values.lc.key(key)[0]
        others: list[int] = [self.values.lc.key(name)[0] for name in self.values]
        end = min((line for line in others if line > start), default=len(lines))
        while end > start + 1 and (not lines[end - 1].strip() or lines[end - 1].lstrip().startswith("#")):
            end -= 1
        return start, end
