"""What cannot be narrowed is refused whatever its configuration says, and what can be passes untouched.

tests/peft_matrix has the refusals by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bitsandbytes
import pytest
import torch
import transformers as hf
from peft import (
    PeftModel,
    get_peft_model,
)
from unplaceable import frozen, trained, with_second

from adapted import adapted, assert_same, batch_of, fingerprint, logits_of, lora_config
from layercard.anatomy.adapters import adapter_sites, base_modules, check_narrowable, sole_adapter
from layercard.anatomy.layers import find_layers
from layercard.anatomy.narrow import narrow
from layercard.anatomy.refusals import check_parameters
from layercard.errors import ModelError
from tiny import GQA, tiny_model


def test_variants_are_refused_by_what_the_layers_compute_too() -> None:
    model = adapted("llama", alora_invocation_tokens=[5, 6])
    model.peft_config["default"].alora_invocation_tokens = None
    with pytest.raises(ModelError, match=r"`model\.layers\.0\.self_attn\.q_proj` is a ALoraLinearVariant"):
        check_narrowable(model)


def test_an_initialisation_that_the_configuration_hides_is_refused_by_its_values() -> None:
    model = adapted("llama", init_lora_weights="pissa")
    model.peft_config["default"].init_lora_weights = True
    with pytest.raises(ModelError, match="the factor that starts at zero is not zero"):
        check_narrowable(model)


@pytest.mark.parametrize("init", ["pissa", "olora", False])
def test_refused_initialisations_would_have_moved_the_logits(init: Any) -> None:
    model = adapted("llama", init_lora_weights=init)
    before = logits_of(model, batch_of("llama"))
    narrow(model, find_layers(model), (2,))
    assert not torch.allclose(logits_of(model, batch_of("llama")), before, atol=1e-2)


def test_meta_parameters_are_refused_with_the_command_that_works() -> None:
    with torch.device("meta"):
        base = hf.LlamaForCausalLM(hf.LlamaConfig(**GQA))
    with pytest.raises(ModelError, match=r"on the meta device.*`cpu_ram_efficient_loading`.*layercard plan MODEL"):
        check_narrowable(get_peft_model(base, lora_config("llama")))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"init_lora_weights": "gaussian"},
        {"use_dora": True},
        {"use_rslora": True},
        {"bias": "all"},
        {"target_modules": "all-linear", "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
    ],
    ids=str,
)
def test_what_is_supported_passes_and_is_left_as_it_was(changes: dict[str, Any]) -> None:
    model = adapted("llama", **changes)
    found = fingerprint(model)
    check_narrowable(model)
    assert_same(found, fingerprint(model))
    assert sole_adapter(model) == "default"


@pytest.mark.parametrize("build", [with_second, lambda: frozen("lora_A"), lambda: frozen("lora_A", use_dora=True)])
def test_a_frozen_copy_beside_and_a_frozen_a_pass(build: Callable[[], PeftModel]) -> None:
    model = build()
    found = fingerprint(model)
    check_narrowable(model)
    assert_same(found, fingerprint(model))
    assert sole_adapter(model) == "default"


def test_trained_adapters_pass_where_a_run_is_resumed() -> None:
    check_narrowable(trained(), allow_trained=True)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"target_modules": "all-linear", "modules_to_save": ["lm_head"]}),
        ("gpt2", {"trainable_token_indices": [4, 5]}),
        ("bert", {"target_modules": "all-linear"}),
    ],
)
def test_base_modules_have_the_names_and_weights_of_the_bare_model(family: str, changes: dict[str, Any]) -> None:
    bare = dict(tiny_model(family).named_modules())
    seen = base_modules(adapted(family, **changes))
    assert list(seen) == list(bare)
    for name, module in seen.items():
        assert type(module) is type(bare[name])
        ours, theirs = (dict(m.named_parameters(recurse=False)) for m in (module, bare[name]))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name


def test_a_module_under_two_names_is_seen_once_as_peft_sees_it() -> None:
    base = tiny_model("llama")
    base.model.first = base.model.layers[0]
    names = [name for name, _ in base.named_modules()]
    model = get_peft_model(base, lora_config("llama"))
    assert list(base_modules(model)) == names
    assert [site.name for site in adapter_sites(model)] == model.base_model.targeted_module_names


def test_sites_are_what_peft_says_it_adapted() -> None:
    model = adapted("bert", target_modules="all-linear")
    assert [site.name for site in adapter_sites(model)] == model.base_model.targeted_module_names
    for site in adapter_sites(model):
        assert getattr(site.parent, site.child) is model.get_submodule(site.path)


def test_weights_repacked_by_an_evaluation_are_refused() -> None:
    """bitsandbytes repacks 4-bit weights on CPUs with AVX512-BF16; where it does not, nothing may be refused."""
    model = torch.nn.Sequential(bitsandbytes.nn.Linear4bit(256, 256, bias=False, quant_type="nf4")).to("cpu")
    check_parameters(model)
    with torch.no_grad():
        model.eval()(torch.randn(2, 256))
    if getattr(model[0].weight.quant_state, "packing_format_for_cpu", False):
        with pytest.raises(ModelError, match="repacked for inference"):
            check_parameters(model)
    else:
        check_parameters(model)
