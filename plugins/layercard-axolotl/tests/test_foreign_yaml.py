"""A configuration that somebody else wrote is data: what it names in Python is neither built nor called."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from layercard.errors import SettingsError
from layercard_axolotl.yaml_file import ConfigFile

TAGGED = [
    (
        "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{ran}']]",
        "!!python/object/apply",
    ),
    ("!!python/object/new:pathlib.Path ['{ran}']", "!!python/object/new"),
    ("!!python/name:os.system ''", "!!python/name:os.system"),
    ("!mine 3", "!mine"),
]


@pytest.mark.parametrize(("value", "tag"), TAGGED)
@pytest.mark.parametrize("key", ["lora_layers", "datasets"])
def test_tags_that_are_not_yamls_own_are_refused_by_name(tmp_path: Path, key: str, value: str, tag: str) -> None:
    path, ran = tmp_path / "run.yml", tmp_path / "ran"
    path.write_text(f"adapter: lora\n{key}: {value.format(ran=ran)}\n")
    with pytest.raises(SettingsError, match="without a tag") as caught:
        ConfigFile.read(path)
    assert f"holds the tag `{tag}" in str(caught.value)
    assert not ran.exists()
    with pytest.raises(yaml.YAMLError):  # as Axolotl reads it
        yaml.safe_load(path.read_text())


def test_yamls_own_tags_stay(tmp_path: Path) -> None:
    path = tmp_path / "run.yml"
    path.write_text("adapter: !!str lora\nseed: !!int 3\n")
    assert ConfigFile.read(path).values["seed"] == 3
