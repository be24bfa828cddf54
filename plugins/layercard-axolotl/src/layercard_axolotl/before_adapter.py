"""Choosing layers before Axolotl builds the adapter: where fused LoRA kernels are on, and for `layercard plan --axolotl`.

The base model is probed with the tokenized training set, and Axolotl builds the adapter on the chosen layers by its own
`peft_layers_to_transform`. All-layer LoRA never exists in such a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from layercard import plugins
from layercard.anatomy.refusals import check_config
from layercard.anatomy.selection import selected_modules, with_fields
from layercard.anatomy.verify import verify_placement
from layercard.errors import HostError, ModelError
from layercard.hosts.plain import PlainHost
from layercard.hosts.rows import collated, holding, sampled_rows
from layercard.pipeline.placing import Chosen, choose_layers
from layercard.pipeline.probing import locate_layers
from layercard.random_state import random_state
from layercard_axolotl import compat

if TYPE_CHECKING:
    from torch import Tensor, nn

    from layercard.anatomy.layers import LayerStack
    from layercard.placement.placement import LayerPlacement
    from layercard.settings import PlacementSettings

    Inputs = Mapping[str, Any]

_KERNELS_OFF = f"Or turn the fused LoRA kernels off ({', '.join(f'`{key}: false`' for key in compat.FUSED_KERNELS)})."
MODEL_INPUTS = ("input_ids", "attention_mask", "labels", "position_ids")


class ConfigHost(PlainHost):
    """An Axolotl configuration with its base model and tokenized data, seen from the pipeline before a trainer exists."""

    def __init__(self, cfg: Any, model: nn.Module, data: Any) -> None:
        self.name = "axolotl"
        tokenizer = compat.load_tokenizer(cfg)
        self._collate = compat.padding_collator(tokenizer)
        self._precision = torch.bfloat16 if cfg.bf16 else torch.float16 if cfg.fp16 else None
        self.trainer = SimpleNamespace(
            model=model,
            train_dataset=data,
            processing_class=tokenizer,
            args=SimpleNamespace(
                device=next(model.parameters()).device,
                gradient_checkpointing=bool(cfg.gradient_checkpointing),
                max_length=cfg.sequence_len,
                output_dir=cfg.output_dir,
                per_device_train_batch_size=cfg.micro_batch_size,
                resume_from_checkpoint=compat.checkpoint_to_resume(cfg),
            ),
        )

    def probe_batches(self, examples: int, batch_size: int | None, seed: int) -> Iterator[Inputs]:
        """Yield padded batches holding `examples` rows of the tokenized set in all; a row is a document."""
        size = batch_size or self.trainer.args.per_device_train_batch_size
        with random_state(seed):
            rows = holding(sampled_rows(self.trainer.train_dataset, seed), examples, lambda row: 1)
            read = [{name: row[name] for name in MODEL_INPUTS if name in row} for row in rows]
            return iter(collated(read, self._collate, size))

    def loss(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """Return the model's own loss, in the precision that training will run in."""
        with torch.autocast(self.device.type, dtype=self._precision, enabled=self._precision is not None):
            loss: Tensor = model(**inputs, use_cache=False).loss
        return loss


def choose_before_adapter(cfg: Any, model: nn.Module, data: Any, settings: PlacementSettings) -> Chosen:
    """Return the layers for a base model without adapters; raise as `layercard.place` does."""
    manager = plugins.manager()
    stack = locate_layers(model, settings.layers_path, manager)
    config = compat.adapter_config(model, cfg)
    check_config(config)
    targets = None if isinstance(config.target_modules, str) else sorted(config.target_modules)
    wanted = replace(settings, probe_rank=cfg.lora_r)
    with compat.running_without_kernels(stack.layers):
        chosen = choose_layers(ConfigHost(cfg, model, data), wanted, stack, manager, target_modules=targets)
    _refuse_inexact(config, model, stack, chosen.placement)
    return chosen


def write_choice(cfg: Any, placement: LayerPlacement, stack: LayerStack) -> None:
    """Tell Axolotl to build the adapter on the placement's layers."""
    cfg.peft_layers_to_transform = list(placement.layers)
    cfg.peft_layers_pattern = [stack.pattern]


def verify_built(model: Any, placement: LayerPlacement, layers_path: str | None) -> None:
    """Raise `PlacementError` unless Axolotl built the adapter on the placement's layers and nowhere else."""
    verify_placement(model, locate_layers(model, layers_path, plugins.manager()), placement.layers)


def _refuse_inexact(config: Any, model: nn.Module, stack: LayerStack, placement: LayerPlacement) -> None:
    """PEFT's `layers_to_transform` drops targets outside the layers, and counts every stack of layers alike."""
    if config.target_parameters:
        raise ModelError(
            "`lora_target_parameters` cannot be narrowed to layers while the adapter is built. Target modules alone. "
            f"{_KERNELS_OFF}"
        )
    names = [name for name, _ in model.named_modules()]
    layered = with_fields(config, {"layers_to_transform": list(placement.layers), "layers_pattern": [stack.pattern]})
    wanted = {n for n in selected_modules(config, names) if stack.layer_of(n) in {None, *placement.layers}}
    built = selected_modules(layered, names)
    if wanted != built:
        wrong = sorted(wanted ^ built)
        raise HostError(
            f"`peft_layers_to_transform` knows layer numbers alone, and would treat `{wrong[0]}` and {len(wrong) - 1} other "
            f"modules outside the layers otherwise than `lora_target_modules` says. {_KERNELS_OFF} Layers are then chosen "
            "after the adapter is built."
        )
