"""What placement refuses about a model's adapters, by name and by property.

Each rule raises `ModelError` saying what was found, what is supported and what to do, and touches nothing.
Supported is LoRA, with or without DoRA, rsLoRA and `lora_bias`, at initial values that add nothing and leave the base
weights as they were.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any

from peft import PeftModel, PeftType
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from layercard.errors import ModelError

NEUTRAL_INITIALISATIONS = (True, "gaussian")
"""Values of `init_lora_weights` that start the adapters at zero and leave the base weights alone."""

SAFE_VARIANTS = ("use_dora",)
"""LoRA variants under which a model without its untrained adapters gives the same logits."""

UNSUPPORTED_FIELDS = {
    "layer_replication": "runs layers several times with shared weights",
    "use_qalora": "pools the adapters' inputs by quantization group",
    "megatron_config": "splits layers over Megatron ranks",
}


def check_lora(model: nn.Module) -> None:
    """Refuse a model that is not a PeftModel in which exactly one LoRA adapter is active."""
    if not isinstance(model, PeftModel):
        raise ModelError(
            f"The model is a {type(model).__name__}, not a `peft.PeftModel`. Placement narrows LoRA adapters that are in "
            "the model. Pass a `peft_config` to the trainer, or wrap the model with `peft.get_peft_model`."
        )
    for config in model.peft_config.values():
        if config.peft_type != PeftType.LORA:
            raise ModelError(
                f"The adapter's type is {PeftType(config.peft_type).value} ({type(config).__name__}). Placement works on "
                "LoRA. Use a `peft.LoraConfig`, or train without `lora_layers`."
            )
    active = model.active_adapters
    if len(active) != 1:
        raise ModelError(
            f"{len(active)} of the model's adapters are active ({', '.join(active)}). Placement works on the one that trains. "
            "Make it the only active one with `model.set_adapter`, or build the model with that adapter alone."
        )


def check_config(config: Any) -> None:
    """Refuse initialisations that change base weights and LoRA variants that are not known to be safe."""
    init = config.init_lora_weights
    neutral = init.lower() if isinstance(init, str) else init
    if neutral is False or neutral not in NEUTRAL_INITIALISATIONS:
        raise ModelError(
            f"`init_lora_weights` is {init!r}, which {_initialisation(init)}. Placement supports `True` and `gaussian`. "
            "Choose one of them, or let `layercard plan MODEL` choose layers, give PEFT its `layers` as "
            "`LoraConfig(layers_to_transform=[...])`, and train without `lora_layers`."
        )
    values = config.to_dict()
    variants = [f.name for f in fields(config) if f.metadata.get("is_lora_variant") and f.name not in SAFE_VARIANTS]
    for name in [*UNSUPPORTED_FIELDS, *variants]:
        if values.get(name):
            raise ModelError(
                f"The LoRA configuration sets `{name}`, which {UNSUPPORTED_FIELDS.get(name, 'changes how LoRA computes')}. "
                f"Placement supports plain LoRA, rsLoRA and DoRA. Leave `{name}` out."
            )


def _initialisation(init: Any) -> str:
    name = str(init).lower()
    if init is False:
        return "starts the adapters at random values, so that taking some out changes the model"
    if name == "eva":
        return "spreads ranks over all layers from its own data, and so has chosen layers already"
    if name in {"orthogonal", "mica"}:
        return "does not start B at zero, as the scores assume"
    return "moves part of the base weights into the adapters, so that taking some out changes the model"


def check_parameters(model: nn.Module, *, allow_absent: bool = False) -> None:
    """Refuse parameters that cannot carry gradients here: on the meta device, sharded already, or repacked.

    `allow_absent` lets the meta device pass.
    """
    for name, parameter in model.named_parameters():
        if (parameter.is_meta and not allow_absent) or hasattr(parameter, "ds_id"):
            where = "on the meta device" if parameter.is_meta else "partitioned by DeepSpeed ZeRO-3"
            loads = "FSDP's `cpu_ram_efficient_loading` loads them on the first rank alone: set it to false. Or choose"
            raise ModelError(
                f"`{name}` is {where}, so the probe cannot run. Placement needs all weights loaded before training, on every "
                f"rank. {loads if parameter.is_meta else 'Choose'} "
                "the layers beforehand with `layercard plan MODEL --dataset DATA -o placement.json`, and give PEFT its `layers` "
                "as `LoraConfig(layers_to_transform=[...])`."
            )
        if hasattr(parameter, "device_mesh"):
            raise ModelError(
                f"`{name}` is sharded already (a DTensor of FSDP2 or tensor parallelism). Placement takes adapters out of "
                "a model before it is sharded, as accelerate does in `train()`: call `place` before `fully_shard`, with the "
                "model whole on every rank's CPU; where no device can hold it, `place` probes it in shards. Or call "
                "`layercard.probe(model, batches)` on every rank, and give PEFT the layers with the highest scores as "
                "`LoraConfig(layers_to_transform=[...])`."
            )
        state = getattr(parameter, "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False):
            raise ModelError(
                f"`{name}` was repacked for inference: bitsandbytes does so on CPUs with AVX512-BF16 when a 4-bit model in "
                "evaluation mode runs a forward pass, and gradients through it are lost from then on. Load the model again, and "
                "evaluate only after training."
            )


def check_wrappers(wrappers: Iterable[tuple[str, LoraLayer]], adapter: str, *, allow_trained: bool) -> None:
    """Refuse LoRA layers that are merged, compute otherwise than LoRA, or already add something."""
    for name, wrapper in wrappers:
        if wrapper.merged:
            raise ModelError(
                f"The adapter of `{name}` is merged into its weight. Placement needs it apart. Call "
                "`model.unmerge_adapter()` first."
            )
        variant = type(wrapper.lora_variant.get(adapter)).__name__
        if variant != "NoneType" and not variant.startswith("Dora"):
            raise ModelError(
                f"The adapter of `{name}` is a {variant}. Placement supports plain LoRA, rsLoRA and DoRA. Use one of them."
            )
        if not allow_trained and is_trained(wrapper, adapter):
            raise ModelError(
                f"The adapter of `{name}` is already trained: the factor that starts at zero is not zero. Placement chooses "
                "layers before training. To go on with a run, name its checkpoint in the trainer's `resume_from_checkpoint`, "
                "whose placement is used again. To train on top of what was learned (DPO after SFT), merge the adapter into "
                "the base model with `merge_and_unload()` and give the trainer a `peft_config`. Otherwise start from fresh "
                "adapters."
            )


def is_trained(wrapper: LoraLayer, adapter: str) -> bool:
    """Whether the factor that starts at zero is no longer zero."""
    return any(not factor.is_meta and bool(factor.detach().any()) for factor in _zero_at_start(wrapper, adapter))


def check_factors(wrappers: Iterable[tuple[str, LoraLayer]], adapter: str) -> None:
    """Refuse factors that were frozen by hand, unless it is every A alike: so trains LoRA-FA."""
    frozen: dict[str, list[str]] = {}
    free: dict[str, list[str]] = {}
    for name, wrapper in wrappers:
        for kind in _FACTORS:
            for parameter in _factor(wrapper, kind, adapter):
                (free if parameter.requires_grad else frozen).setdefault(kind, []).append(name)
    if not free:
        raise ModelError(
            f"No factor of the adapter `{adapter}` trains. Placement chooses layers for training. Load an adapter with "
            "`is_trainable=True`, and freeze none of it by hand."
        )
    for kind, names in frozen.items():
        if kind != "lora_A" or kind in free:
            raise ModelError(
                f"`{kind}` of `{names[0]}` was frozen by hand ({len(names)} such factors, {len(free.get(kind, ()))} others "
                "train). Placement knows adapters that train as PEFT makes them, and LoRA-FA, where every `lora_A` is frozen "
                "and every `lora_B` trains. Freeze either all of `lora_A` or none, and choose layers by `lora_layers`."
            )


def check_beside(wrappers: Iterable[tuple[str, LoraLayer]], adapter: str, other: str) -> None:
    """Refuse an adapter beside the one that trains which cannot be narrowed with it.

    It must adapt the same modules, be frozen, and add nothing, as the copy of a fresh adapter does that TRL's
    `DPOTrainer` computes its reference by.
    """
    for name, wrapper in wrappers:
        factors = [p for kind in _FACTORS for p in _factor(wrapper, kind, other)]
        if not factors or not any(True for kind in _FACTORS for _ in _factor(wrapper, kind, adapter)):
            found = f"does not adapt the same modules: `{name}` has one of the two"
        elif any(parameter.requires_grad for parameter in factors):
            found = f"trains as well, in `{name}`"
        elif is_trained(wrapper, other):
            found = f"is trained: it adds something in `{name}`, which narrowing would take away"
        else:
            continue
        raise ModelError(
            f"The model has the adapter `{other}` beside `{adapter}`, and it {found}. Placement works on one adapter; another "
            "may stand beside it where it adapts the same modules, is frozen and adds nothing, as the copy of a fresh adapter "
            f"that DPO takes for its reference. Give the trainer the model with `{adapter}` alone, or the base model and a "
            "`peft_config`."
        )


_FACTORS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")


def _factor(wrapper: LoraLayer, kind: str, adapter: str) -> Iterator[nn.Parameter]:
    """The matrix (and bias) of one kind that an adapter has in a module; nothing where it has none."""
    held = getattr(wrapper, kind)
    if adapter in held:
        found = held[adapter]
        yield from [found] if isinstance(found, nn.Parameter) else found.parameters()


def _zero_at_start(wrapper: LoraLayer, adapter: str) -> list[Tensor]:
    """The factor that PEFT starts at zero: B of a linear layer, A of an embedding."""
    factors = list(wrapper.lora_B[adapter].parameters()) if adapter in wrapper.lora_B else []
    if adapter in wrapper.lora_embedding_A:
        factors.append(wrapper.lora_embedding_A[adapter])
    return factors
