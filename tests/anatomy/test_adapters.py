"""What cannot be narrowed is refused by name, before anything is touched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bitsandbytes
import pytest
import torch
import transformers as hf
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoraGAConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from peft.tuners.lora.config import KasaConfig, MontecloraConfig, VeloraConfig
from peft.tuners.lora.loraga import preprocess_loraga

from adapted import adapted, assert_same, batch_of, fingerprint, logits_of, lora_config, train
from layercard.anatomy.adapters import adapter_sites, base_modules, check_narrowable, sole_adapter
from layercard.anatomy.layers import find_layers
from layercard.anatomy.narrow import narrow
from layercard.anatomy.refusals import check_parameters
from layercard.errors import ModelError
from tiny import GQA, tiny_model


def with_second(**changes: Any) -> PeftModel:
    """A fresh adapter beside the one that trains, frozen as PEFT adds it."""
    model = adapted("llama")
    model.add_adapter("second", lora_config("llama", **changes))
    return model


def with_trained_second() -> PeftModel:
    model = with_second()
    next(p for name, p in model.named_parameters() if "lora_B.second" in name).data.fill_(0.1)
    return model


def with_training_second() -> PeftModel:
    model = with_second()
    next(p for name, p in model.named_parameters() if "lora_A.second" in name).requires_grad_(True)
    return model


def with_two_active() -> PeftModel:
    model = with_second()
    model.base_model.set_adapter(["default", "second"])
    return model


def frozen(*kinds: str, some: int | None = None, **changes: Any) -> PeftModel:
    """The factors of these kinds frozen by hand, or the first `some` of them."""
    model = adapted("llama", **changes)
    names = [p for name, p in model.named_parameters() if any(f".{kind}." in name for kind in kinds)]
    for parameter in names[:some]:
        parameter.requires_grad_(False)
    return model


def for_inference() -> PeftModel:
    return adapted("llama", inference_mode=True)


def trained(**changes: Any) -> PeftModel:
    model = adapted("llama", **changes)
    train(model, batch_of("llama"), steps=1)
    return model


def merged() -> PeftModel:
    model = adapted("llama")
    model.merge_adapter()
    return model


def with_gradient_initialisation() -> PeftModel:
    base = tiny_model("llama")
    config = lora_config("llama", init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig())
    preprocess_loraga(base, config, lambda: base(**batch_of("llama")).loss.backward())
    base.zero_grad()
    return get_peft_model(base, config)


def other(config: Any) -> Callable[[], PeftModel]:
    return lambda: get_peft_model(tiny_model("llama"), config)


TASK = {"task_type": "CAUSAL_LM"}
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "no adapters": (lambda: tiny_model("llama"), "LlamaForCausalLM, not a `peft.PeftModel`"),
    "mixed": (
        lambda: get_peft_model(tiny_model("llama"), lora_config("llama"), mixed=True),
        "PeftMixedModel, not a `peft.PeftModel`",
    ),
    "prompt tuning": (other(PromptTuningConfig(num_virtual_tokens=2, **TASK)), "PROMPT_TUNING"),
    "prefix tuning": (other(PrefixTuningConfig(num_virtual_tokens=2, **TASK)), "PREFIX_TUNING"),
    "IA3": (other(IA3Config(target_modules=["q_proj"], feedforward_modules=[], **TASK)), r"IA3 \(IA3Config\)"),
    "AdaLoRA": (other(AdaLoraConfig(total_step=10, target_modules=["q_proj"], **TASK)), "ADALORA"),
    "VeRA": (other(VeraConfig(target_modules=["q_proj"], **TASK)), "VERA"),
    "a trained adapter beside": (with_trained_second, "the adapter `second` beside `default`, and it is trained"),
    "another one trains": (with_training_second, "`second` beside `default`, and it trains as well"),
    "other modules beside": (
        lambda: with_second(target_modules=["k_proj"]),
        "`second` .* does not adapt the same modules",
    ),
    "more modules beside": (
        lambda: with_second(target_modules=["q_proj", "v_proj", "down_proj", "up_proj"]),
        "`second` .* does not adapt the same modules",
    ),
    "two active": (with_two_active, r"2 of the model's adapters are active \(default, second\)"),
    "B frozen": (lambda: frozen("lora_B"), "`lora_B` of .* frozen by hand.*LoRA-FA"),
    "some A frozen": (
        lambda: frozen("lora_A", some=3),
        r"`lora_A` of .* frozen by hand \(3 such factors, 9 others train\)",
    ),
    "all frozen": (lambda: frozen("lora_A", "lora_B"), "No factor of the adapter `default` trains.*is_trainable=True"),
    "for inference": (for_inference, "No factor of the adapter `default` trains.*is_trainable=True"),
    "no LoRA layer": (lambda: adapted("llama", target_modules="dummy-target-modules"), "holds no LoRA layer"),
    "trained": (trained, "`model.layers.0.self_attn.q_proj` is already trained"),
    "trained embedding": (
        lambda: trained(target_modules=["embed_tokens"]),
        "`model.embed_tokens` is already trained",
    ),
    "merged": (merged, "merged into its weight"),
    "PiSSA": (lambda: adapted("llama", init_lora_weights="pissa"), "'pissa', which moves part of the base weights"),
    "fast PiSSA": (lambda: adapted("llama", init_lora_weights="pissa_niter_2"), "'pissa_niter_2', which moves"),
    "OLoRA": (lambda: adapted("llama", init_lora_weights="olora"), "'olora', which moves part of the base weights"),
    "LoRA-GA": (with_gradient_initialisation, "'lora_ga', which moves part of the base weights"),
    "EVA": (lambda: adapted("llama", init_lora_weights="eva"), "'eva', which spreads ranks over all layers"),
    "orthogonal": (lambda: adapted("llama", init_lora_weights="orthogonal"), "'orthogonal', which does not start B"),
    "MiCA": (lambda: adapted("llama", init_lora_weights="mica"), "'mica', which does not start B at zero"),
    "random": (lambda: adapted("llama", init_lora_weights=False), "False, which starts the adapters at random"),
    "aLoRA": (lambda: adapted("llama", alora_invocation_tokens=[5, 6]), "sets `alora_invocation_tokens`"),
    "VeLoRA": (lambda: adapted("llama", velora_config=VeloraConfig()), "sets `velora_config`"),
    "MonteCLoRA": (lambda: adapted("llama", monteclora_config=MontecloraConfig()), "sets `monteclora_config`"),
    "KaSA": (lambda: adapted("llama", kasa_config=KasaConfig()), "sets `kasa_config`"),
    "layer replication": (
        lambda: adapted("llama", layer_replication=[(0, 4), (2, 4)]),
        "`layer_replication`, which runs layers several times",
    ),
    "QALoRA": (lambda: adapted("llama", use_qalora=True), "sets `use_qalora`"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # PEFT's own LoRA-GA preparation
@pytest.mark.filterwarnings("ignore:`init_lora_weights` is 'eva' but")
@pytest.mark.filterwarnings("ignore:lora with eva initialization used with low_cpu_mem_usage=False")
@pytest.mark.filterwarnings("ignore:.*`save_embedding_layers`")
def test_refused_by_name_and_left_as_it_was(case: str) -> None:
    build, message = REFUSED[case]
    model = build()
    if isinstance(model, PeftModel):
        found = fingerprint(model)
        with pytest.raises(ModelError, match=message):
            check_narrowable(model)
        assert_same(found, fingerprint(model))
    else:
        found = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(ModelError, match=message):
            check_narrowable(model)
        assert all(torch.equal(value, found[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("init", ["loftq", "corda"])
def test_initialisations_are_refused_by_configuration_alone(init: str) -> None:
    """LoftQ and CorDA need a GPU or packages that are not here; their configuration is all that the refusal reads."""
    model = adapted("llama")
    model.peft_config["default"].init_lora_weights = init
    with pytest.raises(ModelError, match=f"'{init}', which moves part of the base weights"):
        check_narrowable(model)


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
    with pytest.raises(ModelError, match=r"on the meta device.*layercard plan MODEL"):
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
