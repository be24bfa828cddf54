"""How much memory a step would take with any layers adapted, told before layers are chosen: what `max_memory` is held against.

Counted as `layercard plan` does, on the model's own code without values (`cost/traced.py`), for the widest micro-batch that the
run can meet: the rows of one of its own, as wide as the longest example. Predicted, not measured; what is not counted is told by
docs/limits.md.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from layercard.anatomy.adapters import adapter_sites
from layercard.anatomy.layers import PEFT_PREFIX, find_layers
from layercard.cost.fit import Setup, packed_shape
from layercard.cost.packed import saved_bits, unknown_packing
from layercard.cost.peak import Training, optimizer_state, peaks_of
from layercard.cost.traced import RunShape, takes_tiles
from layercard.cost.tracer import tracer
from layercard.errors import ModelError, SettingsError
from layercard.hosts.trainer_data import longest_row
from layercard.pipeline.before.step_ratio import Ahead, look_ahead

if TYPE_CHECKING:
    from layercard.hosts.protocol import Host
    from layercard.pipeline.before.looking import RunToPlace
    from layercard.placement.strategies import PeakBytes


def predicted_peaks(run: RunToPlace) -> PeakBytes | None:
    """Return what predicts the peak memory of a run that adapts any layers, in bytes; None where nobody limits it.

    Raises `SettingsError` where it cannot be told, with the reason.
    """
    if run.settings.max_memory is None:
        return None
    base = _base(run)
    try:
        bare = _without_weights(base)
        stack = find_layers(bare, path=run.stack.path.removeprefix(PEFT_PREFIX))
        targets = sorted({site.name.rpartition(".")[2] for site in adapter_sites(run.host.model)})
        ahead = look_ahead(run)
        setup = _setup(run.host, base, ahead, recompute=ahead.recompute(run.settings))
        return peaks_of(tracer(bare, stack, targets)(setup), setup.training)
    except ModelError as error:
        raise _unknown(run, str(error)) from error


def _without_weights(base: PreTrainedModel) -> PreTrainedModel:
    try:
        with torch.random.fork_rng([]), torch.device("meta"):
            bare: PreTrainedModel = type(base)(copy.deepcopy(base.config))
    except (TypeError, ValueError) as error:  # a class of a user's own that wants more than a configuration
        raise ModelError(f"{type(base).__name__} cannot be made from its configuration alone ({error}).") from error
    return bare


def _base(run: RunToPlace) -> PreTrainedModel:
    """The model under the adapters, where a run of its kind can be predicted."""
    model, trainer = run.host.model, run.host.trainer
    if not isinstance(model, PeftModel):
        raise _unknown(run, "Layers are chosen before there are adapters, whose size is not known yet.")
    base: Any = model.get_base_model()
    if not isinstance(base, PreTrainedModel):
        raise _unknown(run, f"{type(base).__name__} is no model of transformers.")
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise _unknown(run, "What FSDP and DeepSpeed spread over devices is not counted.")
    if run.host.logits is None:
        raise _unknown(run, f"A step of {run.host.name} runs more than the rows of its batch.")
    if (packing := unknown_packing(base.config)) is not None:
        raise _unknown(run, packing)
    return base


def _unknown(run: RunToPlace, why: str) -> SettingsError:
    return SettingsError(
        f"`max_memory` is {run.settings.max_memory}, and nothing tells what this run needs. {why} Say how many layers with "
        "`num_layers` or `fraction`, or which share of the step time with `budget`."
    )


def _setup(host: Any, base: PreTrainedModel, ahead: Ahead, *, recompute: bool) -> Setup:
    args = host.trainer.args
    adapters = _adapter_dtype(host.model)
    shape = RunShape(
        dtype=base.dtype,
        autocast=torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None,
        rank=max(config.r for config in host.model.peft_config.values()),
        adapter_dtype=adapters,
        tiled_head=host.logits == "tiled" and takes_tiles(base),
        tiles_in_place=host.device.type != "cpu",
    )
    if (bits := saved_bits(base.config)) is not None:
        shape = replace(packed_shape(shape, bits), adapter_dtype=adapters)
    rows, tokens = _widest(host)
    training = Training(
        checkpointing=ahead.checkpointing and recompute,
        gradient_entry=not ahead.stays or not ahead.goes_down,
        optimizer_state=optimizer_state(str(getattr(args.optim, "value", args.optim)), adapters.itemsize),
        accumulating=args.gradient_accumulation_steps > 1,
    )
    return Setup(rows, tokens, shape, training, takes_tiles(base))


def _adapter_dtype(model: Any) -> torch.dtype:
    return next(p.dtype for name, p in model.named_parameters() if "lora_" in name and p.requires_grad)


def _widest(host: Host) -> tuple[int, int]:
    """The rows and the tokens of the widest micro-batch; rows that a collator joins are as wide as all of them."""
    batch, _ = host.step_batches(1)[0]
    ids = batch.get("input_ids")
    if ids is None or ids.dim() != 2:
        raise ModelError("The batches hold no rows of tokens.")
    rows, width = ids.shape
    each: int = host.trainer.args.per_device_train_batch_size
    longest = longest_row(host.trainer)
    return rows, max(width, longest if rows >= each else longest * each // rows)
