"""`ConfigFile`: a user's YAML file, in which layers are written and nothing else changes.

Keys are located by a parser that knows their lines; the text around them is kept as it is, comments included.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError

from layercard.errors import SettingsError

KEY = "lora_layers"
BESIDE = "adapter"
"""The key after which layers are written where `lora_layers` is not there."""
PLAIN = "tag:yaml.org,2002:"
"""How the tags of YAML itself begin; behind it, `python/` names what would be built or called in Python."""


@dataclass(frozen=True)
class ConfigFile:
    """The text of a configuration and what it says."""

    path: Path
    text: str
    values: CommentedMap

    @classmethod
    def read(cls, path: Path) -> ConfigFile:
        """Read the file; raise `SettingsError` where it is no YAML mapping of one key a line, or holds foreign tags."""
        try:
            text = path.read_text(encoding="utf-8")
            tag = next(_foreign_tags(text), None)
            values = YAML().load(text)
        except (YAMLError, ValueError) as error:  # ValueError: bytes that are no UTF-8, dates that are none
            raise SettingsError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
        if tag is not None:
            raise SettingsError(
                f"{path} holds the tag `{tag}`; a configuration is plain YAML. Write the value without a tag."
            )
        if not isinstance(values, CommentedMap) or values.fa.flow_style():
            raise SettingsError(f"{path} is no Axolotl configuration: one key a line, such as `base_model: …`.")
        return cls(path, text, values)

    def with_keys(self, keys: Mapping[str, Any], reason: str) -> str:
        """Return the text with `keys` in place of `lora_layers`, and a comment that says why.

        A key that the file holds already moves there; one whose value is None is left out. Raises `SettingsError` where
        lines cannot be put into the file without changing other keys, and says what to write by hand.
        """
        text = self._spliced(keys, reason)
        if not self._says(text, keys):
            lines = "; ".join(" ".join(_lines(key, value)) for key, value in keys.items() if value is not None)
            raise SettingsError(
                f"{self.path} is written in a way that lines cannot be added to without changing other keys. "
                f"Write it by hand: in place of `{KEY}`, put {lines}"
            )
        return text

    def _says(self, text: str, keys: Mapping[str, Any]) -> bool:
        """Whether `text` is YAML that says `keys`, and of everything else what the file says."""
        others = {key: value for key, value in self.values.items() if key not in {KEY, *keys}}
        expected = others | {key: value for key, value in keys.items() if value is not None}
        try:
            found = YAML().load(text)
        except (YAMLError, ValueError):
            return False
        return isinstance(found, CommentedMap) and dict(found) == expected

    def _spliced(self, keys: Mapping[str, Any], reason: str) -> str:
        written = [f"# {line}" for line in textwrap.wrap(reason, 98)]
        for key, value in keys.items():
            written += [] if value is None else _lines(key, value)
        lines = self.text.splitlines()
        home = KEY if KEY in self.values else BESIDE
        taken = {key: self._lines_of(key, lines) for key in {home, *keys} if key in self.values}
        for key, (start, end) in sorted(taken.items(), key=lambda item: item[1], reverse=True):
            if key == BESIDE:
                lines[end:end] = written
            else:
                lines[start:end] = written if key == home else []
        return "\n".join(lines) + "\n"

    def _lines_of(self, key: str, lines: list[str]) -> tuple[int, int]:
        """Return the first line of a key and the one after its value; comments before the next key belong to that."""
        start: int = self.values.lc.key(key)[0]
        others: list[int] = [self.values.lc.key(name)[0] for name in self.values]
        end = min((line for line in others if line > start), default=len(lines))
        while end > start + 1 and (not lines[end - 1].strip() or lines[end - 1].lstrip().startswith("#")):
            end -= 1
        return start, end


def _foreign_tags(text: str) -> Iterator[str]:
    """Yield the tags that are not YAML's own, such as those that name Python objects; nothing is built to find them."""
    for event in YAML().parse(text):
        tag = getattr(event, "tag", None)
        if tag and (not tag.startswith(PLAIN) or tag.startswith(f"{PLAIN}python/")):
            yield tag.replace(PLAIN, "!!")


def _lines(key: str, value: Any) -> list[str]:
    """A key with its value as YAML: names one a line, everything else in one."""
    if isinstance(value, list) and any(isinstance(entry, str) for entry in value) and len(value) > 1:
        return [f"{key}:", *(f"  - {entry}" for entry in value)]
    if isinstance(value, list):
        return [f"{key}: [{', '.join(map(str, value))}]"]
    return [f"{key}: {json.dumps(value)}"]
