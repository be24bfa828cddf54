"""docs/peft.md: an adapter that is saved here is read by the supported releases of PEFT, each installed for itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from environments import installed_apart, run_apart
from peft_cases import CASES, LAYERS, Case
from peft_page import RELEASES, VERSIONS, check_reading

from adapted import adapter_names, logits_of
from layercard.anatomy.layers import find_layers
from layercard.anatomy.narrow import narrow
from table_page import installed

pytestmark = [
    pytest.mark.skipif(not installed(VERSIONS), reason="the page is about other releases"),
    pytest.mark.filterwarnings("ignore:MatMul8bitLt"),  # says that it casts float32 to float16
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`"),  # PEFT, of adapted embeddings
    pytest.mark.filterwarnings("ignore:Adapter 'default'.*invalid shape"),  # PEFT takes `lora_bias` for shards
]
READ = [name for name, case in CASES.items() if not case.packages]


KINDS = ("placed", "all layers")


def test_the_table_says_which_releases_read_the_saved_adapters(tmp_path: Path) -> None:
    written = {kind: {name: save(CASES[name], tmp_path, kind, name) for name in of_kind(kind)} for kind in KINDS}
    read = {}
    for release in RELEASES:
        packages = installed_apart([f"peft=={release}"], tmp_path / f"peft-{release}")
        run_apart("read_adapters.py", [str(tmp_path), release, *READ], packages)
        read[release] = torch.load(tmp_path / f"{release}.pt", weights_only=True)
    for name in READ:
        check_reading(name, [in_words(name, read[release], written) for release in RELEASES])


def of_kind(kind: str) -> list[str]:
    """All are read as placed; adapters on parameters, which PEFT itself changed, as PEFT saves them without layercard too."""
    return [name for name in READ if kind == "placed" or "target_parameters" in CASES[name].lora]


def save(case: Case, folder: Path, kind: str, name: str) -> dict[str, Any]:
    """Save an adapter of values drawn at random; return what must be read."""
    model = case.adapted(folder)
    if kind == "placed":
        narrow(model, find_layers(model), LAYERS)
    torch.manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder / kind / name)
    return {"adapters": adapter_names(model), "logits": logits_of(model, case.kind.collate(case.kind.examples(3)))}


def in_words(name: str, found: dict[str, Any], written: dict[str, Any]) -> str:
    """Say how a release reads a case, and where it does not whether that is so without layercard."""
    placed = compared(found["placed"][name], written["placed"][name])
    if placed == "same":
        return placed
    without = compared(found["all layers"][name], written["all layers"][name])
    assert without == placed, f"{name}: {placed} where it was placed, {without} where it was not"
    return f"{placed}, with or without layercard"


def compared(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """Say in words how a reading compares."""
    if "error" in found:
        return "not read: sizes differ" if "size mismatch" in found["error"] else f"not read: {found['error']}"
    if found["adapters"] != [name for name in expected["adapters"] if ".default" in name]:
        return "other modules"
    difference = (found["logits"] - expected["logits"]).abs().max()
    return "same" if difference <= 1e-6 else "other logits"
