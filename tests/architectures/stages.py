"""What is done with every model type: located, probed, placed, trained, saved, and read again by PEFT alone."""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer, ParamWrapper
from registry import SIZES, Architecture
from rows import Kind
from transformers import set_seed
from transformers.pytorch_utils import Conv1D

import layercard
from layercard import place
from layercard.anatomy.layers import PEFT_PREFIX, LayerStack, find_layers
from trainers import Rows, arguments, trained

LAYER_TOLERANCE = 5e-5
TRAINED_TOLERANCE = 1e-4
"""Kernels differ in rounding where an input needs no gradient, and Adam's first steps enlarge that."""


@dataclass(frozen=True)
class Outcome:
    """What one model type did, stage by stage, in words for the table."""

    layers: str
    probe: str
    entry: str
    cache: str
    reload: str


def base_of(name: str, architecture: Architecture) -> Any:
    """Return the bare model, the same every time, without dropout and with nothing zero by construction."""
    kind = hf.models.auto.configuration_auto.CONFIG_MAPPING[name]
    known = set(inspect.signature(kind.__init__).parameters) | set(kind.attribute_map)
    sizes = {field: value for field, value in SIZES.items() if field in known}
    labels = {"num_labels": 3} if "Classification" in architecture.head else {}
    config = kind(**(sizes | labels | copy.deepcopy(architecture.changes)))
    for field, value in config.to_dict().items():
        if ("drop" in field or "jitter" in field) and isinstance(value, float):
            setattr(config, field, 0.0)
    config.use_cache = False
    torch.manual_seed(0)
    model = getattr(hf, architecture.head).from_config(config)
    for parameter in model.parameters():
        if parameter.dim() <= 1 or not bool(parameter.any()):
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def adapted(name: str, architecture: Architecture) -> PeftModel:
    """Return the model with fresh LoRA, the same every time."""
    base = base_of(name, architecture)
    left = architecture.left_alone
    task = {"CausalLM": "CAUSAL_LM", "SequenceClassification": "SEQ_CLS"}.get(architecture.head[len("AutoModelFor") :])
    torch.manual_seed(7)
    return get_peft_model(
        base,
        LoraConfig(
            r=4,
            lora_alpha=8,
            target_modules=architecture.targets,
            exclude_modules=None if left is None else rf".*({left}).*",
            task_type=task,
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in base.modules()),
        ),
    )


def norms_by_autograd(model: PeftModel, stack: LayerStack, singles: list[Any]) -> tuple[dict[Any, float], np.ndarray]:
    """Return the mean norm of ∂L/∂B over the examples, of every module and of every layer, from `loss.backward()`."""
    sites = {
        (index, name): module
        for index, layer in enumerate(stack.layers)
        for name, module in layer.named_modules()
        if isinstance(module, LoraLayer) and not isinstance(module, ParamWrapper) and module.lora_B
    }
    by_module, by_layer = dict.fromkeys(sites, 0.0), np.zeros(len(stack))
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    for single in singles:
        model.zero_grad()
        model(**single).loss.backward()
        squares = np.zeros(len(stack))
        for place_of, module in sites.items():
            gradient = module.lora_B["default"].weight.grad
            square = 0.0 if gradient is None else float((gradient.double() / module.scaling["default"]).square().sum())
            by_module[place_of] += square**0.5 / len(singles)
            squares[place_of[0]] += square
        by_layer += np.sqrt(squares) / len(singles)
    model.zero_grad()
    return by_module, by_layer


def check_probe(model: PeftModel, stack: LayerStack, kind: Kind, path: str | None = None) -> str:
    """Compare the probe of a padded batch with autograd on each example alone; return what the probe said beside."""
    examples, collate = kind.examples(3), kind.collate
    by_module, by_layer = norms_by_autograd(model, stack, [collate([example]) for example in examples])
    found = layercard.probe(model, [collate(examples)], scores=["gradient_norm"], layers_path=path, show_progress=False)
    adapted = sorted({layer for layer, _ in by_module})
    np.testing.assert_allclose(found.gradient_norm[adapted], by_layer[adapted], rtol=LAYER_TOLERANCE)
    assert by_layer[adapted].all()
    for (layer, name), expected in by_module.items():
        norm = np.nan_to_num(found.module_gradient_norm[layer, found.targets.index(name)])
        assert abs(norm - expected) < LAYER_TOLERANCE * by_layer[layer], f"{name} of layer {layer}: {norm} {expected}"
    return "; ".join(["exact", *found.notes])


def check_training(
    by_hand: hf.Trainer, trainer: hf.Trainer, layers: tuple[int, ...], path: str | None = None
) -> tuple[str, str]:
    """Train by hand, and placed and cached; compare the weights, and return what became of entry and cache."""
    set_seed(11)
    by_hand.train()
    run = place(trainer, lora_layers=list(layers), layers_path=path, prefix_cache="on", guard=False)
    set_seed(11)
    trainer.train()
    found, expected = trained(trainer.model), trained(by_hand.model)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert (found[key] - value).norm() <= TRAINED_TOLERANCE * value.norm(), key
    report = run.report
    entry, cache = report.gradient_entry, report.prefix_cache
    assert report.backward_layers == tuple(range(layers[0] if entry["moved"] else 0, run.placement.num_layers))
    if cache["on"] and cache["off"] is None:
        assert cache["hits"] == 4 or cache["bypassed"]
    why_not = cache["off"] or next(iter(cache["bypassed"]), None) if cache["on"] else cache["obstacle"]
    return "moved" if entry["moved"] else entry["obstacle"], why_not or "used"


def trainer_of(model: PeftModel, kind: Kind, folder: Path) -> hf.Trainer:
    """Return a trainer as hosts build it: layers are checkpointed where the model can."""
    checkpoints = model.get_base_model().supports_gradient_checkpointing
    args = arguments(
        folder,
        max_steps=3,
        logging_strategy="no",
        include_num_input_tokens_seen=False,
        activation_checkpointing=checkpoints,
        activation_checkpointing_kwargs={"use_reentrant": False} if checkpoints else None,
    )
    return hf.Trainer(model=model, args=args, train_dataset=Rows(kind.examples(2)), data_collator=kind.collate)


def freeze_others(model: PeftModel, architecture: Architecture) -> None:
    """Freeze by hand what a placement takes out; adapters there still add nothing."""
    stack = find_layers(model, path=architecture.path)
    kept = tuple(f"{stack.path}.{layer}." for layer in architecture.layers)
    for name, parameter in model.named_parameters():
        if ".lora_" in name and not name.startswith(kept):
            parameter.requires_grad_(False)


def check_reload(model: PeftModel, base: Any, kind: Kind, folder: Path) -> str:
    """Read the saved adapter by PEFT alone, and compare logits."""
    model.save_pretrained(folder)
    again = PeftModel.from_pretrained(base, folder)
    batch = kind.collate(kind.examples(3))
    with torch.no_grad():
        found, expected = again.eval()(**batch).logits, model.eval()(**batch).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6, equal_nan=True)
    return "same logits"


def tried(name: str, architecture: Architecture, folder: Path) -> Outcome:
    """Run every stage; raise what layercard raises where it refuses the model type."""
    kind, path = architecture.rows, architecture.path
    model = adapted(name, architecture)
    stack = find_layers(model, path=path)
    probe = check_probe(model, stack, kind, path)
    by_hand, model = adapted(name, architecture), adapted(name, architecture)
    freeze_others(by_hand, architecture)
    trainers = [trainer_of(each, kind, folder / where) for each, where in ((by_hand, "by hand"), (model, "placed"))]
    entry, cache = check_training(*trainers, architecture.layers, path)
    reload = check_reload(model, base_of(name, architecture), kind, folder / "adapter")
    return Outcome(f"`{stack.path.removeprefix(PEFT_PREFIX)}`", probe, entry, cache, reload)
