"""Ends backpropagation at the lowest adapted layer: `GradientEntry`, and what stands in its way:
`find_obstacle`.

With gradient checkpointing on, hosts make the embeddings' output require grad, and gradients then run through
every frozen layer down to the input. `GradientEntry` cuts them off at the entry. It does not choose the
entry, does not measure what is saved, and changes no weight: the weights after any number of steps are those
without it.
"""

from __future__ import annotations

import functools
import logging
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Literal

import torch
from torch import nn

from layercard.anatomy.backward_watch import BackwardWatch, cause_of, hidden_of, with_hidden
from layercard.anatomy.checkpoint_input import MarkedCheckpoint, hooks_run_inside
from layercard.anatomy.checkpoint_names import current_name, is_checkpointing
from layercard.anatomy.input_gradients import SilencedHooks
from layercard.anatomy.layers import LayerStack
from layercard.anatomy.rounds import LOOPED, Rounds
from layercard.anatomy.trainable_below import first_tower, layers_below, obstacle_below, trainable_below
from layercard.errors import PlacementError

__all__ = [
    "BackwardWatch",
    "CheckpointingAbove",
    "GradientEntry",
    "cause_of",
    "choose_checkpointing",
    "find_obstacle",
    "trainable_below",
]

CheckpointingAbove = Literal["keep", "off"]
log = logging.getLogger("layercard")


def find_obstacle(model: nn.Module, stack: LayerStack, entry: int, args: Any = None) -> str | None:
    """Return in one sentence why backpropagation cannot end at layer `entry`, or None where it can.

    Parameters: `model` as it trains; `stack` its layers; `args` the trainer's `TrainingArguments`, where
    there are any.
    """
    return (
        obstacle_below(model, stack, entry)
        or _sharding(model, args)
        or _layer_offloading(args)
        or _checkpointing_outside_layers(model, stack)
        or _reentrant_reader(model, stack, args)
    )


def _sharding(model: nn.Module, args: Any) -> str | None:
    from transformers.integrations import is_deepspeed_zero3_enabled

    plugin = None if args is None else vars(args).get("deepspeed_plugin")
    stage3 = plugin is not None and plugin.zero_stage == 3
    if stage3 or is_deepspeed_zero3_enabled() or any(hasattr(p, "ds_id") for p in model.parameters()):
        return "DeepSpeed ZeRO-3 gathers a layer's weights in its backward, which has to run for every layer."
    fsdp = None if args is None else vars(args).get("fsdp_config")
    wrapped = any("CheckpointWrapper" in type(module).__name__ for module in model.modules())
    if wrapped or (isinstance(fsdp, dict) and fsdp.get("activation_checkpointing") and vars(args).get("fsdp")):
        return "FSDP's own activation checkpointing wraps every layer and recomputes it from outside."
    return None


def _layer_offloading(args: Any) -> str | None:
    if args is not None and vars(args).get("layer_offloading"):
        return "`layer_offloading` moves frozen layers between devices by hooks on their backward."
    return None


def _checkpointing_outside_layers(model: nn.Module, stack: LayerStack) -> str | None:
    """Old models checkpoint in the loop over layers; inside a reentrant one, an input cannot be marked."""
    for module in model.modules():
        active = "gradient_checkpointing" in vars(module) and module.gradient_checkpointing
        if active and _is_reentrant(module) and not any(hasattr(x, "gradient_checkpointing") for x in stack.layers):
            return f"{type(module).__name__} checkpoints its layers from outside with `use_reentrant=True`; {_not_reentrant()}"
    return None


def _not_reentrant() -> str:
    return f"set `{current_name()}_kwargs={{'use_reentrant': False}}`."


def _reentrant_reader(model: nn.Module, stack: LayerStack, args: Any) -> str | None:
    """A decoder reads its encoder beside its own input; a reentrant checkpoint may not see that require grad."""
    tower = first_tower(model, stack)
    if tower is None:
        return None
    kwargs = None if args is None else vars(args).get(f"{current_name()}_kwargs")
    if kwargs and kwargs.get("use_reentrant") and is_checkpointing(args):
        return f"What runs after the placed layers is checkpointed with `use_reentrant=True`; {_not_reentrant()}"
    inside = {id(module) for module in tower.modules()}
    for module in model.modules():
        if id(module) not in inside and vars(module).get("gradient_checkpointing") and _is_reentrant(module):
            return (
                f"{type(module).__name__}, which runs after the placed layers, is checkpointed with `use_reentrant=True`; "
                f"{_not_reentrant()}"
            )
    return None


def _is_reentrant(module: nn.Module) -> bool:
    function = vars(module).get("_gradient_checkpointing_func")
    if isinstance(function, functools.partial):
        return function.keywords.get("use_reentrant") is not False
    return True


class GradientEntry:
    """Context manager in which backpropagation ends at the input of layer `entry`.

    While entered, every input-gradient hook is silenced, layers below the entry run without an autograd graph
    and without checkpointing, and layers from the entry up are checkpointed as the user set it (`keep`) or
    not (`off`). On exit all is as found. It may be entered again and again, not twice at once. Enter it when
    training begins: `Trainer.train()` registers the hooks anew. Hosts that toggle checkpointing during a step
    are followed.

    Where the model calls its layers again within one pass, the entry is given up in the first pass, with a warning;
    `given_up` says why. The weights are the same.

    Check `find_obstacle` first. Raises `PlacementError` where parameters below the entry are trainable.
    """

    def __init__(
        self,
        model: nn.Module,
        stack: LayerStack,
        entry: int,
        *,
        checkpointing_above: CheckpointingAbove = "keep",
    ) -> None:
        self._model, self._stack, self._entry = model, stack, entry
        self._checkpointing_above = checkpointing_above
        self._unchecked: list[nn.Module] = []
        self._silenced = SilencedHooks(model)
        self._checkpoint = MarkedCheckpoint(stack.layers[entry])
        self._undo: ExitStack | None = None
        self._rounds = Rounds(model, stack)
        self.given_up: str | None = None

    def __enter__(self) -> GradientEntry:
        if self._undo is not None:
            raise RuntimeError("GradientEntry is entered already.")
        if self.given_up is not None:
            self._undo = ExitStack()
            return self
        obstacle = obstacle_below(self._model, self._stack, self._entry)
        if obstacle is not None:
            raise PlacementError(
                f"Backpropagation cannot end at layer {self._entry}: {obstacle} It can where only layers "
                "from the entry up are trained; set `gradient_entry: false` to train as the host does."
            )
        with ExitStack() as undo:
            self._switch_off_checkpointing(undo)
            undo.callback(self._silenced.wake)
            self._silenced.silence()
            self._register(undo)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        undo, self._undo = self._undo, None
        if undo is not None:
            undo.close()

    def _switch_off_checkpointing(self, undo: ExitStack) -> None:
        layers = self._stack.layers if self._checkpointing_above == "off" else self._stack.layers[: self._entry]
        layers = (*layers, *layers_below(self._model, self._stack))
        flagged = [m for layer in layers for m in layer.modules() if hasattr(m, "gradient_checkpointing")]
        self._unchecked = flagged
        for module in flagged:
            undo.callback(_restore_flag, module, vars(module).get("gradient_checkpointing"))
            _set_flag(module, False)

    def _register(self, undo: ExitStack) -> None:
        layers = self._stack.layers
        self._rounds.register(undo)
        if hooks_run_inside(layers[self._entry]):
            undo.callback(self._checkpoint.remove)
            self._mark_checkpoint()
            owner = self._model.get_submodule(self._stack.path.rpartition(".")[0])
            undo.callback(owner.register_forward_pre_hook(self._begin_model).remove)
        if self._entry > 0:
            undo.callback(layers[0].register_forward_pre_hook(self._begin_prefix, with_kwargs=True).remove)
        undo.callback(layers[self._entry].register_forward_pre_hook(self._begin_entry, with_kwargs=True).remove)

    def _begin_model(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Run before the model that holds the layers, whose hooks would come too late to undo what the host did."""
        if torch.is_grad_enabled():
            self._follow_host()
            self._mark_checkpoint()

    def _mark_checkpoint(self) -> None:
        entry = self._stack.layers[self._entry]
        if _is_reentrant(entry):
            self._checkpoint.install()

    def _follow_host(self) -> None:
        self._silenced.silence_again()
        for flagged in self._unchecked:
            if flagged.gradient_checkpointing:
                _set_flag(flagged, False)

    def _begin_prefix(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run before layer 0: undo what the host did since; the prefix gets no graph in any case."""
        if not torch.is_grad_enabled() or self._gives_up(0):
            return None
        self._follow_host()
        return _detached(args, kwargs)

    def _begin_entry(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run before the entry layer: the graph begins here."""
        if not torch.is_grad_enabled() or self._gives_up(self._entry):
            return None
        reentrant = getattr(module, "gradient_checkpointing", False) and module.training and _is_reentrant(module)
        return _detached(args, kwargs, require_grad=reentrant)

    def _gives_up(self, layer: int) -> bool:
        """What enters in a second round carries gradients of the first one, which must not be cut off."""
        if self._undo is None:
            return True
        if not self._rounds.is_second(layer):
            return False
        self.given_up = f"{type(self._model).__name__} is looped: {LOOPED}."
        log.warning("Backpropagation does not end at layer %d: %s", self._entry, self.given_up)
        self._undo.close()
        self._undo = ExitStack()
        return True


def _detached(args: tuple[Any, ...], kwargs: dict[str, Any], *, require_grad: bool = False) -> Any:
    """The call's arguments, hidden states cut off; a reentrant checkpoint needs them to require grad."""
    hidden = hidden_of(args, kwargs)
    if hidden is None or not (hidden.requires_grad or require_grad):
        return None
    return with_hidden(args, kwargs, hidden.detach().requires_grad_(require_grad))


def _restore_flag(module: nn.Module, found: bool | None) -> None:
    """`found` is None where the class's own default stood."""
    if found is None:
        del module.gradient_checkpointing
    else:
        _set_flag(module, found)


def _set_flag(module: Any, value: bool) -> None:
    module.gradient_checkpointing = value


def choose_checkpointing(
    setting: Literal["keep", "off", "auto"], *, peak_off_bytes: int | None, baseline_peak_bytes: int | None
) -> tuple[CheckpointingAbove, str]:
    """Return whether to checkpoint from the entry up, and why in one sentence.

    `peak_off_bytes` is the measured peak of a placed step without checkpointing, `baseline_peak_bytes` that
    of an all-layer step as the host runs it; None where it could not be measured or ran out of memory.
    """
    if setting != "auto":
        return setting, f"`checkpointing_above_entry` is `{setting}`."
    if peak_off_bytes is None or baseline_peak_bytes is None:
        return "keep", "Kept: the peak memory without checkpointing, or that of all-layer LoRA, is not known."
    compared = f"{peak_off_bytes / 2**20:.0f} MiB against {baseline_peak_bytes / 2**20:.0f} MiB of all-layer LoRA"
    if peak_off_bytes <= baseline_peak_bytes:
        return "off", f"Off: the measured peak without checkpointing is {compared}."
    return "keep", f"Kept: the measured peak without checkpointing is {compared}."
