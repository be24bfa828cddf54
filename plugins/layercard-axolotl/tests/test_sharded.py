"""FSDP with weights on the first rank alone: every rank chooses the same layers by depth, and Axolotl builds on them."""

from __future__ import annotations

import pytest
from runs import PLUGIN, sft, write

from layercard.anatomy.adapters import adapter_sites
from layercard.anatomy.layers import find_layers

FSDP = {
    "fsdp_version": 2,
    "fsdp_config": {
        "cpu_ram_efficient_loading": True, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": "LlamaDecoderLayer", "offload_params": False, "state_dict_type": "FULL_STATE_DICT",
    },
}  # fmt: skip


def loaded_by_rank(rank, path, monkeypatch):
    """Return the plugin and the model as a rank of a distributed run has them before its trainer is made."""
    from axolotl.cli.config import load_cfg
    from axolotl.integrations.base import PluginManager
    from axolotl.loaders import ModelLoader, load_tokenizer

    monkeypatch.setenv("LOCAL_RANK", str(rank))
    cfg = load_cfg(str(path))
    plugin = PluginManager.get_instance().plugins[PLUGIN]
    assert plugin.load_datasets(cfg) is None
    model, _ = ModelLoader(cfg, load_tokenizer(cfg)).load()
    return plugin, model


@pytest.mark.parametrize(("lora_layers", "layers"), [("auto", {1, 3}), ("last", {2, 3}), ([0, 2], {0, 2})], ids=str)
def test_every_rank_chooses_the_same_layers_without_weights(folder, tmp_path, monkeypatch, lora_layers, layers):
    path = write(sft(folder, lora_layers=lora_layers, **FSDP), tmp_path / "out")
    for rank in (0, 1):
        plugin, model = loaded_by_rank(rank, path, monkeypatch)
        base = [p for name, p in model.named_parameters() if "lora_" not in name]
        assert all(p.is_meta for p in base) is (rank == 1)
        stack = find_layers(model)
        assert {stack.layer_of(site.path) for site in adapter_sites(model)} == layers
        assert set(plugin._chosen.placement.layers) == layers
    assert [bool(note) for note in plugin._chosen.notes] == [True] * (lora_layers == "auto")
