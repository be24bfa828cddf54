"""Ways to adapt a model with PEFT that placement refuses, and a part of the message of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import peft
import unplaceable as made
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig

from tiny import tiny_model


class Refused(NamedTuple):
    """How people write it, how it is made, and what the message must say (a regular expression)."""

    written: str
    make: Callable[[], Any]
    message: str


def _starting(name: str, message: str) -> Refused:
    return Refused(f'`init_lora_weights="{name}"`', made.lora(init_lora_weights=name), message)


def _configured(name: str, message: str) -> Refused:
    """An initialisation that cannot be computed here."""
    return Refused(f'`init_lora_weights="{name}"`', lambda: made.initialised(name), message)


def _variant(written: str, **fields: Any) -> Refused:
    return Refused(f"`{written}`", made.lora(**fields), f"sets `{next(iter(fields))}`")


def _other(kind: Callable[..., Any], type_name: str, **fields: Any) -> Refused:
    return Refused(f"`{kind.__name__}`", made.other(kind, **fields), f"The adapter's type is {type_name} ")


BLOCKS = BdLoraConfig(target_modules_bd_a=["q_proj"], target_modules_bd_b=["v_proj", "down_proj"], nblocks=2)
MOVES = "which moves part of the base weights"
REFUSED: dict[str, Refused] = {
    "PiSSA": _starting("pissa", f"'pissa', {MOVES}"),
    "fast PiSSA": _starting("pissa_niter_2", f"'pissa_niter_2', {MOVES}"),
    "OLoRA": _starting("olora", f"'olora', {MOVES}"),
    "EVA": _starting("eva", "'eva', which spreads ranks over all layers"),
    "LoftQ": _configured("loftq", f"'loftq', {MOVES}"),
    "CorDA": _configured("corda", f"'corda', {MOVES}"),
    "LoRA-GA": Refused('`init_lora_weights="lora_ga"`', made.with_gradient_initialisation, f"'lora_ga', {MOVES}"),
    "orthogonal": _starting("orthogonal", "'orthogonal', which does not start B"),
    "MiCA": _starting("mica", "'mica', which does not start B at zero"),
    "random": Refused(
        "`init_lora_weights=False`", made.lora(init_lora_weights=False), "False, which starts the adapters at random"
    ),
    "aLoRA": _variant("alora_invocation_tokens=[…]", alora_invocation_tokens=[5, 6]),
    "VeLoRA": _variant("velora_config", velora_config=VeloraConfig()),
    "MonteCLoRA": _variant("monteclora_config", monteclora_config=MontecloraConfig()),
    "KaSA": _variant("kasa_config", kasa_config=KasaConfig()),
    "BD-LoRA": _variant("use_bdlora", use_bdlora=BLOCKS),
    "QALoRA": _variant("use_qalora=True", use_qalora=True),
    "layer replication": Refused(
        "`layer_replication=[…]`",
        made.lora(layer_replication=[(0, 4), (2, 4)]),
        "`layer_replication`, which runs layers several times",
    ),
    "two active": Refused(
        "two adapters active", made.with_two_active, r"2 of the model's adapters are active \(default, second\)"
    ),
    "another one trains": Refused(
        "a second adapter trains", made.with_training_second, "`second` beside `default`, and it trains as well"
    ),
    "a trained one beside": Refused(
        "a second adapter that adds something",
        made.with_trained_second,
        "the adapter `second` beside `default`, and it is trained",
    ),
    "other modules beside": Refused(
        "a second adapter on other modules",
        lambda: made.with_second(target_modules=["k_proj"]),
        "`second` .* does not adapt the same modules",
    ),
    "more modules beside": Refused(
        "a second adapter on more modules",
        lambda: made.with_second(target_modules=["q_proj", "v_proj", "down_proj", "up_proj"]),
        "`second` .* does not adapt the same modules",
    ),
    "trained": Refused(
        "an adapter that is trained", made.trained, "`model.layers.0.self_attn.q_proj` is already trained"
    ),
    "trained embedding": Refused(
        "the same on embeddings",
        lambda: made.trained(target_modules=["embed_tokens"]),
        "`model.embed_tokens` is already trained",
    ),
    "merged": Refused("`model.merge_adapter()`", made.merged, "merged into its weight"),
    "B frozen": Refused(
        "every `lora_B` frozen", lambda: made.frozen("lora_B"), "`lora_B` of .* frozen by hand.*LoRA-FA"
    ),
    "some A frozen": Refused(
        "some `lora_A` frozen",
        lambda: made.frozen("lora_A", some=3),
        r"`lora_A` of .* frozen by hand \(3 such factors, 9 others train\)",
    ),
    "all frozen": Refused(
        "every factor frozen",
        lambda: made.frozen("lora_A", "lora_B"),
        "No factor of the adapter `default` trains.*is_trainable=True",
    ),
    "for inference": Refused(
        "`inference_mode=True`",
        made.lora(inference_mode=True),
        "No factor of the adapter `default` trains.*is_trainable=True",
    ),
    "no LoRA layer": Refused(
        "`target_modules` that match none", made.lora(target_modules="dummy-target-modules"), "holds no LoRA layer"
    ),
    "no adapters": Refused("a bare model", lambda: tiny_model("llama"), "LlamaForCausalLM, not a `peft.PeftModel`"),
    "mixed": Refused("`get_peft_model(…, mixed=True)`", made.mixed, "PeftMixedModel, not a `peft.PeftModel`"),
    "AdaLoRA": _other(peft.AdaLoraConfig, "ADALORA", total_step=10, target_modules=["q_proj"]),
    "LoHa": _other(peft.LoHaConfig, "LOHA", target_modules=["q_proj"]),
    "LoKr": _other(peft.LoKrConfig, "LOKR", target_modules=["q_proj"]),
    "VeRA": _other(peft.VeraConfig, "VERA", target_modules=["q_proj"]),
    "OFT": _other(peft.OFTConfig, "OFT", target_modules=["q_proj"], oft_block_size=8),
    "IA3": _other(peft.IA3Config, "IA3", target_modules=["q_proj"], feedforward_modules=[]),
    "trainable tokens alone": _other(peft.TrainableTokensConfig, "TRAINABLE_TOKENS", token_indices=[5, 6]),
    "prompt tuning": _other(peft.PromptTuningConfig, "PROMPT_TUNING", num_virtual_tokens=2),
    "prefix tuning": _other(peft.PrefixTuningConfig, "PREFIX_TUNING", num_virtual_tokens=2),
    "p-tuning": _other(peft.PromptEncoderConfig, "P_TUNING", num_virtual_tokens=2, encoder_hidden_size=8),
}
