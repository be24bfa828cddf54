"""Models in a state that placement refuses: adapters beside another, trained, frozen by hand, merged, or of other kinds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peft import LoraGAConfig, PeftModel, get_peft_model
from peft.tuners.lora.loraga import preprocess_loraga

from adapted import adapted, batch_of, lora_config, train
from tiny import tiny_model


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


def initialised(name: str) -> PeftModel:
    """An initialisation that needs a GPU or packages that are not here: its configuration is all that the refusal reads."""
    model = adapted("llama")
    model.peft_config["default"].init_lora_weights = name
    return model


def lora(**changes: Any) -> Callable[[], PeftModel]:
    """How to make a model whose LoRA configuration has these fields."""
    return lambda: adapted("llama", **changes)


def other(kind: Callable[..., Any], **fields: Any) -> Callable[[], PeftModel]:
    """How to make a model by another method of PEFT's."""
    return lambda: get_peft_model(tiny_model("llama"), kind(task_type="CAUSAL_LM", **fields))


def mixed() -> Any:
    return get_peft_model(tiny_model("llama"), lora_config("llama"), mixed=True)
