"""Every place where layercard-axolotl depends on how an Axolotl version is made.

Written for Axolotl 0.19 and 0.21. It offers Axolotl's own loading steps by names of ours, and nothing of placement.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import nn

from layercard.errors import ModelError

FUSED_KERNELS = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel")


def fused_kernels(cfg: Mapping[str, Any]) -> list[str]:
    """Return the keys of the fused LoRA kernels that are on; they are patched into layers where adapters are."""
    return [key for key in FUSED_KERNELS if cfg.get(key)]


def load_training_data(cfg: Any) -> Any:
    """Return Axolotl's tokenized data for supervised fine-tuning, as `axolotl train` loads it."""
    from axolotl.common.datasets import load_datasets

    return load_datasets(cfg=cfg)


def is_tokenized(dataset: Any) -> bool:
    """Whether rows hold tokens already; those of vision and audio runs get theirs from the collator, while training."""
    if dataset is None:
        return False
    names = dataset.column_names  # a stream may not know them
    return "input_ids" in (next(iter(dataset), {}) if names is None else names)


def load_tokenizer(cfg: Any) -> Any:
    """Return the tokenizer as Axolotl loads it."""
    from axolotl.loaders import load_tokenizer as load

    return load(cfg)


def padding_collator(tokenizer: Any) -> Any:
    """Return Axolotl's collator for rows that are padded, not packed."""
    from axolotl.utils.collators import DataCollatorForSeq2Seq

    return DataCollatorForSeq2Seq(tokenizer, padding=True, return_tensors="pt")


def adapter_config(model: nn.Module, cfg: Any) -> Any:
    """Return the `peft.LoraConfig` that Axolotl would build the adapter of `model` from."""
    from axolotl.loaders.adapter import load_adapter

    _, config = load_adapter(model, cfg, cfg.adapter, config_only=True)
    return config


def with_linear_names(config: Any, model: nn.Module) -> Any:
    """Return the configuration with `all-linear` replaced by the names that PEFT takes it for in `model`."""
    from peft.tuners.tuners_utils import _maybe_include_all_linear_layers

    return _maybe_include_all_linear_layers(copy.copy(config), model)


def mapping(values: Mapping[str, Any]) -> Any:
    """Return the mapping as the type that Axolotl's functions read: absent keys are None."""
    from axolotl.utils.dict import DictDefault

    return DictDefault(dict(values))


def skeleton(values: Mapping[str, Any]) -> nn.Module:
    """Return the model of a configuration by the class that Axolotl loads it with, without weights, on the meta device.

    Raises `ModelError` where its configuration cannot be read.
    """
    import transformers
    from axolotl.loaders import ModelLoader
    from axolotl.utils.config import normalize_config

    cfg = mapping({"micro_batch_size": 1, "gradient_accumulation_steps": 1} | dict(values))
    try:
        normalize_config(cfg)
        loader = ModelLoader(cfg, tokenizer=None)
    except OSError as error:
        raise ModelError(
            f"The model {cfg.base_model} cannot be read: {str(error).strip().splitlines()[0]} Give `base_model` a folder with a "
            "config.json, or a Hub id."
        ) from None
    loader._set_auto_model_loader()
    named = cfg.type_of_model and cfg.type_of_model != "AutoModelForCausalLM" and not cfg.trust_remote_code
    with torch.device("meta"):
        model: nn.Module = loader._load_model_from_config(getattr(transformers, cfg.type_of_model) if named else None)
    return model


def checkpoint_to_resume(cfg: Any) -> str | None:
    """Return the checkpoint that Axolotl will resume from, None for a new run."""
    from axolotl.utils.train import determine_last_checkpoint

    checkpoint: str | None = determine_last_checkpoint(cfg)
    return checkpoint


def packing_columns(trainer: Any) -> Any:
    """Return the training set as the packing dataloader reads it: Axolotl takes these columns away."""
    dataset, args = trainer.train_dataset, trainer.args
    names = set(dataset.column_names or ())
    unused = {"length"} & names
    if args.sample_packing_drop_attention_mask and {"position_ids", "attention_mask"} <= names:
        unused.add("attention_mask")
    return dataset.remove_columns(sorted(unused)) if unused else dataset


def ask_for_columns_once(trainer: Any) -> None:
    """Let the trainer be asked again for the columns that its model reads; where it packs, Axolotl answers once and then fails.

    Its `PackingMixin` takes `attention_mask` out of the same list each time, and stops where it is gone.
    """
    ask = trainer._set_signature_columns_if_needed

    def ask_once() -> None:
        if trainer._signature_columns is None:
            ask()

    trainer._set_signature_columns_if_needed = ask_once


@contextmanager
def running_without_kernels(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Let a base model run whose attention class was rewritten for fused kernels before the kernels were put in.

    With `lora_qkv_kernel` or `lora_o_kernel` Axolotl replaces the class's forward, which then asks each instance for
    `apply_qkv` and `apply_o`; they get theirs only after the adapter is built.
    """
    from axolotl.monkeypatch import lora_kernels

    added: list[tuple[nn.Module, str]] = []
    try:
        for layer in layers:
            for attention in lora_kernels.find_self_attn_in_layer(layer):
                plain = {"apply_qkv": lora_kernels.original_apply_qkv, "apply_o": lora_kernels.original_apply_o}
                for name in plain.keys() - vars(attention).keys():
                    vars(attention)[name] = MethodType(plain[name], attention)
                    added.append((attention, name))
        yield
    finally:
        for attention, name in added:
            del vars(attention)[name]
