"""Choosing layers before Axolotl builds the adapter: where fused LoRA kernels are on, where weights are on one rank alone,
and for `layercard plan --axolotl`.

The base model is probed with the tokenized training set, and Axolotl builds the adapter on the chosen layers by its own
keys. All-layer LoRA never exists in such a run. Where there is nothing to probe, layers are chosen by depth.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import torch
from peft import PeftModel

from layercard import plugins
from layercard.anatomy.verify import verify_placement
from layercard.errors import SettingsError
from layercard.hosts.plain import PlainHost
from layercard.hosts.rows import collated, holding, sampled_rows
from layercard.pipeline.before.choosing import Chosen, choose_layers
from layercard.pipeline.before.looking import RunToPlace, locate_layers
from layercard.pipeline.before.record import record_of_run
from layercard.pipeline.before.resume import resumed_placement
from layercard.placement.choose import choose_placement, needed_score, only_some
from layercard.random_state import random_state
from layercard.registry import Extensions
from layercard_axolotl import compat
from layercard_axolotl.adapter_keys import Selection
from layercard_axolotl.hosts import no_row_left
from layercard_axolotl.refusals import weights_on_one_rank

if TYPE_CHECKING:
    from torch import Tensor, nn

    from layercard.anatomy.layers import LayerStack
    from layercard.placement.placement import LayerPlacement
    from layercard.settings import PlacementSettings

    Inputs = Mapping[str, Any]

MODEL_INPUTS = ("input_ids", "attention_mask", "labels", "position_ids", "token_type_ids")


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
                gradient_accumulation_steps=cfg.gradient_accumulation_steps or 1,
                max_steps=cfg.max_steps or -1,
                num_train_epochs=cfg.num_epochs or 1,
                world_size=int(os.environ.get("WORLD_SIZE", "1")),
                n_gpu=0,  # one process a device: nothing is split inside it
                resume_from_checkpoint=compat.checkpoint_to_resume(cfg),
            ),
        )

    def probe_batches(self, examples: int, batch_size: int | None, seed: int) -> Iterator[Inputs]:
        """Yield padded batches holding `examples` rows of the tokenized set in all; a row is a document."""
        size = batch_size or self.trainer.args.per_device_train_batch_size
        with random_state(seed):
            sampled, empty = sampled_rows(self.trainer.train_dataset, seed), no_row_left(self.trainer.args.max_length)
            rows = holding(sampled, examples, lambda row: 1, empty=empty)
            read = [{name: row[name] for name in MODEL_INPUTS if name in row} for row in rows]
            return iter(collated(read, self._collate, size))

    @property
    def objective(self) -> Literal["model"]:
        """The loss is the model's own."""
        return "model"

    def loss(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """Return the model's own loss, in the precision that training will run in."""
        with torch.autocast(self.device.type, dtype=self._precision, enabled=self._precision is not None):
            loss: Tensor = model(**inputs, use_cache=False).loss
        return loss


@dataclass(frozen=True)
class Early:
    """Layers that were chosen before the adapter, and the Axolotl keys that build it on them alone."""

    chosen: Chosen
    keys: Mapping[str, Any]

    def write(self, cfg: Any) -> None:
        """Tell Axolotl to build the adapter on the placement's layers."""
        for key, value in self.keys.items():
            cfg[key] = value


def choose_before_adapter(cfg: Any, model: nn.Module, data: Any, settings: PlacementSettings) -> Early:
    """Return the layers for a base model without adapters; raise as `layercard.place` does.

    `data` is the training set. Where it is None, or was not tokenized beforehand, nothing is probed: `auto` goes by depth.
    """
    extensions = plugins.extensions()
    selection = Selection(cfg, model)
    stack = locate_layers(model, settings.layers_path or selection.stack_path(), extensions)
    layers = selection.layers_of(stack)
    host = ConfigHost(cfg, model, data)
    blind = why_blind(cfg, data)
    if blind is None:
        wanted = replace(settings, probe_rank=cfg.lora_r)
        with compat.running_without_kernels(stack.layers):
            names = selection.names_inside(stack)
            chosen = choose_layers(RunToPlace(host, wanted, stack, extensions, names, layers))
    else:
        chosen = _without_looking(host, settings, stack, extensions, layers, blind)
    return Early(chosen, selection.keys_on(stack, chosen.placement.layers))


def why_blind(cfg: Any, data: Any) -> str | None:
    """Return in one sentence why this run's data cannot be read by this run's model before the adapter, None where they can."""
    if weights_on_one_rank(cfg):
        return "FSDP with `cpu_ram_efficient_loading` gives weights to the first rank alone, so nothing was probed."
    if not compat.is_tokenized(data):
        return "The rows are tokenized while training reads them (images, sound), so nothing was probed."
    return None


def _without_looking(
    host: ConfigHost,
    settings: PlacementSettings,
    stack: LayerStack,
    extensions: Extensions,
    layers: tuple[int, ...],
    why: str,
) -> Chosen:
    """Return an earlier run's placement, or choose among `layers` by depth; raise `SettingsError` for a score."""
    resumed = resumed_placement(host, settings, record_of_run(host, settings, stack, None))
    if resumed is not None:
        return Chosen(resumed.placement.among(only_some(layers, len(stack))), reused=True, notes=resumed.notes)
    strategies = extensions.strategies
    score = needed_score(settings, strategies)
    if score is not None:
        raise SettingsError(
            f"`strategy` is {settings.strategy!r}, which reads the score `{score}`. {why} Choose by depth, such as "
            "`lora_layers: uniform`, or name the layers."
        )
    notes = (f"{why} No Layer Card was consulted.",) if settings.is_auto else ()
    return Chosen(choose_placement(settings, len(stack), strategies=strategies, adaptable=layers), notes=notes)


def verify_built(model: Any, placement: LayerPlacement, layers_path: str | None) -> None:
    """Raise `PlacementError` unless Axolotl built the adapter on the placement's layers and nowhere else.

    A model that is no PeftModel yet gets its adapter from TRL, whose trainer `place` verifies.
    """
    if isinstance(model, PeftModel):
        verify_placement(model, locate_layers(model, layers_path, plugins.extensions()), placement.layers)
