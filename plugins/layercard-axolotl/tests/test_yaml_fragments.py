"""Whatever stands in a YAML file, it is refused in one sentence, or layers are written and every other key stays as it was."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from layercard.errors import SettingsError
from layercard_axolotl.yaml_file import ConfigFile

VALUES = (
    st.sampled_from(["lora", "qlora", "auto", "[1, 2]", "{strategy: high}", "null", "", "2e-4", "'a: b'", "&x 1", "*x"])
    | st.sampled_from(
        ["|\n  two\n  lines", ">-\n  folded\n\n  on", "\n  - path: a\n    type: b", "\n  nested: 1 # why"]
    )
    | st.text(st.characters(codec="utf-8"), max_size=8)
)
NAMES = st.sampled_from(["adapter", "lora_layers", "base_model", "datasets", "layers_to_transform", "1", "? [a]"])
LINES = (
    st.tuples(NAMES, VALUES).map(lambda pair: f"{pair[0]}: {pair[1]}")
    | st.sampled_from(["", "# a comment", "  # further in", "---", "...", "<<: {a: 1}", "- item", "%YAML 1.1", "\ttab"])
    | st.text(max_size=6)
)
FILES = st.tuples(st.lists(LINES, max_size=8), st.sampled_from(["\n", "\r\n", "\r"])).map(lambda f: f[1].join(f[0]))
WRITTEN = st.sampled_from([[3], [0, 1, 2], "auto", ["q_proj", "v_proj"]])


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("yaml") / "run.yml"


def read(path: Path) -> ConfigFile | None:
    """The file, None where it is refused in one sentence."""
    try:
        return ConfigFile.read(path)
    except SettingsError as error:
        said = str(error)
    assert str(path) in said
    assert "\n" not in said
    return None


def values(text: str) -> dict[str, Any]:
    return dict(YAML().load(text))


@pytest.mark.filterwarnings("ignore::ruamel.yaml.error.ReusedAnchorWarning")
@settings(deadline=None, max_examples=300, derandomize=True)
@given(FILES, WRITTEN)
def test_layers_are_written_and_nothing_else_changes(path: Path, text: str, layers: Any) -> None:
    path.write_text(text, encoding="utf-8", newline="")
    found = read(path)
    if found is None:
        return
    try:
        written = found.with_keys({"lora_layers": layers}, "why")
    except SettingsError as error:
        said = str(error)
        refused = "Write it by hand" in said
    else:
        refused = False
        after = values(written)
        assert after.pop("lora_layers") == layers
        before = values(text)
        before.pop("lora_layers", None)
        assert after == before
    # ordinary files are not refused
    assert not refused or re.search(r"[|>&*?\t%]|---|\.\.\.|<<|[^\x20-\x7e\n\r]", text) or "adapter" not in found.values


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a: \x00", b"adapter: lora\n\x80"])
def test_bytes_that_are_no_text_are_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(SettingsError, match="cannot be read as YAML"):
        ConfigFile.read(path)
