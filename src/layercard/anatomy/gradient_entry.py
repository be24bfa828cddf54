"""Ends backpropagation at the lowest adapted layer: `GradientEntry`, and what stands in its way:
`find_obstacle`.

With gradient checkpointing on, hosts make the embeddings' output require grad, and gradients then run through
every frozen layer down to the input. `GradientEntry` cuts them off at the entry. It does not choose the
entry, does not measure what is saved, and changes no weight: the weights after any number of steps are those
without it.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Literal

import torch
from torch import nn

from layercard.anatomy.backward_watch import BackwardWatch, cause_of, hidden_of, with_hidden
from layercard.anatomy.checkpoint_input import MarkedCheckpoint, hooks_run_inside
from layercard.anatomy.entry_obstacles import find_obstacle, is_reentrant
from layercard.anatomy.input_gradients import SilencedHooks
from layercard.anatomy.layers import LayerStack
from layercard.anatomy.rounds import LOOPED, Rounds
from layercard.anatomy.trainable_below import layers_below, obstacle_below, trainable_below
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
        self._owner = model.get_submodule(stack.path.rpartition(".")[0])
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
            undo.callback(self._owner.register_forward_pre_hook(self._begin_model).remove)
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
        if is_reentrant(entry):
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
        reentrant = getattr(module, "gradient_checkpointing", False) and module.training and is_reentrant(module)
        return _detached(args, kwargs, require_grad=reentrant)

    def _gives_up(self, layer: int) -> bool:
        """What enters in a second round carries gradients of the first one, which must not be cut off."""
        if self._undo is None:
            return True
        if not self._rounds.is_second(layer):
            return False
        self.given_up = f"{type(self._owner).__name__} is looped: {LOOPED}."
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
