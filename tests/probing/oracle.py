"""One example at a time, autograd through real PEFT adapters with B = 0: slow, obvious, and independent of hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from tiny import ENCODERS

TARGETS = {
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    "opt": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
    "bert": ["query", "key", "value", "dense"],
    "deberta": ["query_proj", "key_proj", "value_proj", "dense"],
    "modernbert": ["Wqkv", "Wo", "Wi"],
}
LLAMA_LIKE = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adapted(model: Any, family: str, *, alpha: int = 16, rank: int = 4, **kwargs: Any) -> PeftModel:
    """Return `model` with fresh LoRA adapters on every matrix of its layers."""
    task = "SEQ_CLS" if family in ENCODERS else "CAUSAL_LM"
    targets = TARGETS.get(family, LLAMA_LIKE)
    exclude = [name for name, _ in model.named_modules() if "pooler" in name or name.startswith(("head", "classifier"))]
    torch.manual_seed(1)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=targets,
        exclude_modules=exclude or None,
        task_type=task,
        fan_in_fan_out=family == "gpt2",
        **kwargs,
    )
    return get_peft_model(model, config)


def gradients(model: PeftModel, batch: dict[str, Any]) -> dict[tuple[int, str], np.ndarray]:
    """Return ∂L/∂B over the LoRA scale by (layer, target) for one batch of one example, from `loss.backward()`."""
    _quiet(model)
    model.zero_grad()
    model(**batch).loss.backward()
    found = {}
    for name, module in model.named_modules():
        if not hasattr(module, "lora_B") or "default" not in module.lora_B:
            continue
        layer, target = _place(name)
        grad = module.lora_B["default"].weight.grad
        found[layer, target] = (grad / module.scaling["default"]).double().numpy()
    model.zero_grad()
    return found


def _quiet(model: PeftModel) -> None:
    """No dropout; 4-bit weights stay in training mode, where bitsandbytes does not repack them for inference."""
    model.train(hasattr(model.get_base_model(), "hf_quantizer"))


def _place(name: str) -> tuple[int, str]:
    parts = name.split(".")
    index = next(i for i, part in enumerate(parts) if part.isdigit())
    return int(parts[index]), ".".join(parts[index + 1 :])


def mean_norms(model: PeftModel, singles: list[dict[str, Any]], num_layers: int) -> np.ndarray:
    """Return (layers,) the mean over examples of √(Σ_m ‖∂L/∂B_m‖²)."""
    total = np.zeros(num_layers)
    for single in singles:
        squares = np.zeros(num_layers)
        for (layer, _), gradient in gradients(model, single).items():
            squares[layer] += (gradient**2).sum()
        total += np.sqrt(squares)
    return total / len(singles)


def energies(
    model: PeftModel,
    singles: list[dict[str, Any]],
    num_layers: int,
    keep: Callable[[str, torch.Tensor, int], bool],
) -> np.ndarray:
    """Return (layers,) the mean over targets of E‖x‖²/d over tokens, from inputs caught one example at a time."""
    sums: dict[tuple[int, str], list[float]] = {}
    hooks = []
    length = 0

    def hook(where: tuple[int, str]) -> Callable[..., None]:
        def catch(module: Any, args: Any) -> None:
            x = args[0].detach().double().reshape(-1, args[0].shape[-1])
            if keep(where[1], x, length):
                entry = sums.setdefault(where, [0.0, 0.0])
                entry[0] += float((x**2).sum() / x.shape[1])
                entry[1] += len(x)

        return catch

    for name, module in model.named_modules():
        if hasattr(module, "lora_B") and "default" in module.lora_B:
            hooks.append(module.register_forward_pre_hook(hook(_place(name))))
    _quiet(model)
    with torch.no_grad():
        for single in singles:
            length = single["input_ids"].shape[1]
            model(**single)
    for handle in hooks:
        handle.remove()
    by_layer: list[list[float]] = [[] for _ in range(num_layers)]
    for (layer, _), (total, count) in sums.items():
        by_layer[layer].append(total / count)
    return np.array([np.mean(values) for values in by_layer])
