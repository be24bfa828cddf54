"""Whether a trainer can still be placed: `refuse_late` says why not, and which of its conventions work instead.

What a trainer makes after placing (its optimizer, by `create_optimizer`) knows the placed layers; what was made before, or
what will be made instead of the placed model, does not. Checked against transformers 5.23.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from layercard.errors import HostError

if TYPE_CHECKING:
    from layercard.settings import PlacementSettings

BOUND_TO_PARAMETERS = ("params", "model", "optimizer_dict")
"""Keys of `optimizer_cls_and_kwargs` that the trainer takes out and uses in place of the parameters that train."""
CHANGES_LAYERS = ("all_layers", "widen")
OWN_OPTIMIZER = (
    "Let the trainer make the optimizer after placing: pass `optimizer_cls_and_kwargs=(torch.optim.AdamW, {...})`, or override "
    "`create_optimizer` in a subclass, which is the way for LoRA+: there, `self.optimizer = create_loraplus_optimizer("
    "self.model, torch.optim.AdamW, lr=..., loraplus_lr_ratio=...)`."
)


def refuse_late(trainer: Any, settings: PlacementSettings) -> None:
    """Raise `HostError` where the trainer will not train the model that is placed, or holds what was made for all layers."""
    if trainer.model_init is not None:
        raise HostError(
            "The trainer was given a `model_init`, so `train()` and every trial of `hyperparameter_search` build another model "
            "than the one that would be placed. Build the model and the trainer yourself for each trial, without `model_init`, "
            "and call `place` on each trainer before its `train()`."
        )
    if trainer.optimizer is not None:
        raise HostError(_has_optimizer(trainer))
    _refuse_bound_optimizer(trainer)
    reason = None if settings.schedule is None else why_no_schedule(trainer)
    if reason is not None:
        raise HostError(f"`schedule` is {settings.schedule!r}. {reason} Train without `schedule`.")
    if trainer.lr_scheduler is not None and settings.on_quality_loss in CHANGES_LAYERS:
        raise HostError(
            f"The trainer was given a scheduler of its own, and `on_quality_loss` is {settings.on_quality_loss!r}, which makes "
            "optimizer and scheduler anew where the layers change. Pass no `optimizers` and let the arguments "
            "(`lr_scheduler_type`) or `create_scheduler` make the scheduler, or use `on_quality_loss: stop`."
        )
    if trainer.model_wrapped is not trainer.model:
        raise HostError("The trainer has wrapped its model already. Call `place` before `train()`.")


def _has_optimizer(trainer: Any) -> str:
    if trainer.state.global_step > 0:
        return (
            f"The trainer has trained {trainer.state.global_step} steps, and its optimizer holds the parameters of every layer. "
            "Build the model with fresh adapters and the trainer anew, and call `place` before `train()`."
        )
    return (
        "The trainer has an optimizer already (`optimizers=`), which holds the parameters of every layer as they were before "
        f"placing. {OWN_OPTIMIZER}"
    )


def _refuse_bound_optimizer(trainer: Any) -> None:
    if trainer.optimizer_cls_and_kwargs is None:
        return
    bound = [key for key in BOUND_TO_PARAMETERS if key in trainer.optimizer_cls_and_kwargs[1]]
    if bound:
        raise HostError(
            f"`optimizer_cls_and_kwargs` holds `{bound[0]}`, parameters of every layer as they were before placing, which the "
            f"trainer would use once and then forget. Leave it out: the trainer gives what trains. For groups of your own, "
            f"override `create_optimizer` in a subclass."
        )


def why_no_schedule(trainer: Any) -> str | None:
    """Return in a sentence why layers of this trainer's model cannot stop learning on the way, or None where they can."""
    args = trainer.args
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        kind = "FSDP" if trainer.is_fsdp_enabled else "DeepSpeed"
        return f"{kind} decides when it wraps the model which parameters have gradients."
    if args.n_gpu > 1:
        return "torch.nn.DataParallel copies the model in every step, and was not tried with it."
    if args.torch_compile:
        return "torch.compile would compile the model anew in the middle of the run."
    if args.world_size > 1 and args.ddp_find_unused_parameters is False:
        return (
            "DistributedDataParallel would wait for the gradients of layers that learn no more, since "
            "`ddp_find_unused_parameters` is false. Leave that out, or set it to true."
        )
    return None
