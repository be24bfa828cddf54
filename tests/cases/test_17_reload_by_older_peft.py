"""What is saved selects exactly the placed modules in every PEFT that pyproject.toml allows, as each finds a layer's number.

The releases' ways are written down here once more, on the parts of a name instead of by their regular expressions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from adapted import TARGETS, lora_config, with_adapters
from layercard.anatomy.layers import LayerStack, find_layers
from layercard.anatomy.narrow import narrow
from layercard.anatomy.selection import selected_by_releases, selected_modules
from tiny import CAUSAL, ENCODERS, FAMILIES, GQA, tiny_model

Reading = Callable[[list[int]], int | None]
RELEASES: dict[str, tuple[int, Reading]] = {
    "0.18": (1, lambda found: found[-1] if found else None),
    "0.20": (1, lambda found: found[0] if found else None),
    "0.21": (0, lambda found: found[0] if found else None),
}
"""Where a name's list of layers may stand at the earliest, and which of its numbers counts."""


def selected(config: dict[str, Any], names: list[str], release: str) -> set[str]:
    """Return what a saved configuration selects by target names and layers."""
    earliest, reading = RELEASES[release]
    found = set()
    for name in names:
        targets = config["target_modules"]
        if isinstance(targets, str):
            found |= {name} if re.fullmatch(targets, name) else set()
            continue
        if name in targets:
            found.add(name)
            continue
        if not any(name.endswith(f".{target}") for target in targets):
            continue
        parts = name.split(".")
        at = [
            i
            for i in range(earliest, len(parts) - 2)
            if parts[i] == config["layers_pattern"] and parts[i + 1].isdigit()
        ]
        layer = reading([int(parts[i + 1]) for i in at])
        if config["layers_to_transform"] is None or layer in config["layers_to_transform"]:
            found.add(name)
    return found


def saved(model: PeftModel, folder: Path) -> dict[str, Any]:
    model.save_pretrained(folder)
    written: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    return written


class Experts(nn.Module):
    """A routed layer as models with remote code write it: experts in a list, which has lists of its own."""

    def __init__(self, inner: str) -> None:
        super().__init__()
        self.q_proj = nn.Linear(8, 8)
        self.experts = nn.ModuleList(
            [nn.ModuleDict({"up": nn.Linear(8, 8), "q_proj": nn.Linear(8, 8)}) for _ in range(3)]
        )
        setattr(self, inner, nn.ModuleList([nn.Linear(8, 8) for _ in range(4)]))
        self.norm = nn.LayerNorm(8)


class Stack(nn.Module):
    def __init__(self, inner: str, *, nested: bool) -> None:
        super().__init__()
        blocks = nn.ModuleList([Experts(inner) for _ in range(4)])
        if nested:
            self.model = nn.ModuleDict({"layers": blocks})
        else:
            self.layers = blocks
        self.q_proj = nn.Linear(8, 8)


ROOTS: dict[str, Callable[[], Any]] = {
    "GPT2Model": lambda: hf.GPT2Model(CAUSAL["gpt2"]()),
    "BertModel": lambda: hf.BertModel(ENCODERS["bert"]()),
    "LlamaModel": lambda: hf.LlamaModel(hf.LlamaConfig(**GQA)),
    "Qwen2Model": lambda: hf.Qwen2Model(hf.Qwen2Config(**GQA)),
}
ROOT_TARGETS = {"GPT2Model": ["c_attn"], "BertModel": ["query", "value"]}


@pytest.mark.parametrize("kind", ROOTS)
@pytest.mark.parametrize("layers", [(1,), (0, 3)])
def test_a_stack_at_the_root_reloads_everywhere(tmp_path: Path, kind: str, layers: tuple[int, ...]) -> None:
    base = ROOTS[kind]()
    targets = ROOT_TARGETS.get(kind, ["q_proj", "v_proj"])
    config = LoraConfig(r=2, target_modules=targets, fan_in_fan_out=kind == "GPT2Model")
    model = get_peft_model(base, config)
    names = [name for name, _ in ROOTS[kind]().named_modules()]
    stack = find_layers(model)
    narrow(model, stack, layers)
    live = set(model.base_model.targeted_module_names)
    written = saved(model, tmp_path)
    for release in RELEASES:
        assert selected(written, names, release) == live, release
    loaded = PeftModel.from_pretrained(ROOTS[kind](), tmp_path)
    assert set(loaded.base_model.targeted_module_names) == live


@pytest.mark.parametrize("family", FAMILIES)
def test_models_with_a_head_keep_the_short_form_and_reload_everywhere(tmp_path: Path, family: str) -> None:
    model = with_adapters(tiny_model(family), lora_config(family))
    narrow(model, find_layers(model), (1, 3))
    live = set(model.base_model.targeted_module_names)
    written = saved(model, tmp_path)
    assert written["layers_to_transform"] == [1, 3]
    assert set(written["target_modules"]) == set(TARGETS.get(family, ["q_proj", "v_proj", "down_proj"]))
    names = [name for name, _ in tiny_model(family).named_modules()]
    for release in RELEASES:
        assert selected(written, names, release) == live, release


@settings(max_examples=25, deadline=None)
@given(
    inner=st.sampled_from(["layers", "blocks", "experts_of"]),
    nested=st.booleans(),
    targets=st.sets(st.sampled_from(["q_proj", "up", "0", "2"]), min_size=1),
    layers=st.sets(st.integers(0, 3), min_size=1),
)
def test_lists_within_lists_and_targets_outside_reload_everywhere(
    inner: str, nested: bool, targets: set[str], layers: set[int]
) -> None:
    """0.18 reads the last `layers.N.` of a name, the others the first: `layers.1.layers.0` is two layers."""
    bare = Stack(inner, nested=nested)
    names = [name for name, _ in bare.named_modules()]
    linear = {name for name, module in bare.named_modules() if isinstance(module, nn.Linear)}
    path = "model.layers" if nested else "layers"
    inside = {n for n in linear if n.startswith(f"{path}.") and any(n.endswith(f".{t}") for t in targets)}
    outside = {n for n in linear - inside if n in targets}
    config = LoraConfig(r=2, target_modules=sorted(inside | outside))
    model = get_peft_model(Stack(inner, nested=nested), config)
    blocks = model.get_submodule(f"base_model.model.{path}")
    narrow(model, LayerStack(f"base_model.model.{path}", tuple(blocks)), sorted(layers))
    kept = {n for n in inside if int(n.removeprefix(f"{path}.").split(".")[0]) in layers} | outside
    assert set(model.base_model.targeted_module_names) == kept
    fields = model.peft_config["default"].to_dict()
    for release in RELEASES:
        assert selected(fields, names, release) == kept, release


@settings(max_examples=60, deadline=None)
@given(
    names=st.lists(
        st.lists(st.sampled_from(["h", "layers", "0", "1", "2", "attn", "q"]), min_size=1, max_size=7).map(".".join),
        max_size=12,
        unique=True,
    ),
    targets=st.sets(st.sampled_from(["q", "attn.q", "h.1.q", "0", "layers.0.attn.q"]), min_size=1),
    pattern=st.sampled_from(["h", "layers"]),
    layers=st.sets(st.integers(0, 2), min_size=1),
)
def test_the_readings_are_those_of_the_releases(
    names: list[str], targets: set[str], pattern: str, layers: set[int]
) -> None:
    chosen = {"layers_to_transform": sorted(layers), "layers_pattern": pattern}
    config = LoraConfig(target_modules=sorted(targets), **chosen)
    written = {"target_modules": targets, **chosen}
    assert selected_by_releases(config, names) == [selected(written, names, release) for release in RELEASES]


def test_the_installed_release_is_one_of_them() -> None:
    """Where PEFT changes its reading again, this says so."""
    names = [
        "h.0.attn", "x.h.0.attn", "x.h.1.h.2.attn", "h.1.x.h.0.attn", "x.h.3.attn", "h.attn", "h.0", "model.h.0.experts.1.attn",
    ]  # fmt: skip
    config = LoraConfig(target_modules=["attn"], layers_to_transform=[0], layers_pattern="h")
    assert selected_modules(config, names) in selected_by_releases(config, names)


def test_a_reloaded_root_stack_gives_the_same_outputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = get_peft_model(ROOTS["LlamaModel"](), LoraConfig(r=2, target_modules=["q_proj"]))
    base = ROOTS["LlamaModel"]()
    base.load_state_dict(
        {
            name.replace(".base_layer", ""): value
            for name, value in model.base_model.model.state_dict().items()
            if "lora_" not in name
        }
    )
    narrow(model, find_layers(model), (2,))
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    ids = torch.arange(3, 12)[None]
    loaded = PeftModel.from_pretrained(base, tmp_path)
    assert torch.equal(model.eval()(ids).last_hidden_state, loaded.eval()(ids).last_hidden_state)
