"""Finds and silences the hooks that make the embeddings' output require grad.

Hosts call `enable_input_require_grads()` so that checkpointed layers receive gradients; called on the PEFT
model and on the base, or twice, it leaves several hooks, of which one `disable_input_require_grads()` takes
off only the last. A silenced hook keeps its place and its handle, so that waking it leaves everything as it
was, and a host that removes it meanwhile is obeyed. Knows nothing of entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

HOOK_NAMES = frozenset({"make_inputs_require_grads", "make_inputs_require_grad"})
"""The names that transformers and peft give the function they register."""


@dataclass(frozen=True)
class InputGradientHook:
    """One registered hook: the dotted name of its module, the module, and the hook's key there."""

    module_name: str
    module: nn.Module
    key: int


def input_gradient_hooks(model: nn.Module) -> list[InputGradientHook]:
    """Return every hook that makes some module's output require grad, by module and order of registration."""
    return [InputGradientHook(name, module, key) for name, module in model.named_modules() for key in _keys(module)]


def _keys(module: nn.Module) -> Iterator[int]:
    for key, hook in module._forward_hooks.items():
        if getattr(hook, "__name__", None) in HOOK_NAMES:
            yield key


def _silent(module: nn.Module, inputs: Any, output: Any) -> None:
    """Stands where an input-gradient hook was."""


class SilencedHooks:
    """The input-gradient hooks that were silenced, until `wake` puts them back."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._silenced: list[tuple[InputGradientHook, Callable[..., Any]]] = []

    def silence(self) -> None:
        """Silence every input-gradient hook there is now; call it again for those that a host added since."""
        for hook in input_gradient_hooks(self._model):
            self._silenced.append((hook, hook.module._forward_hooks[hook.key]))
            hook.module._forward_hooks[hook.key] = _silent

    def silence_again(self) -> None:
        """Silence hooks that came back at modules that had some; cheap enough for every step."""
        for module in {id(hook.module): hook.module for hook, _ in self._silenced}.values():
            for key in list(_keys(module)):
                self._silenced.append((InputGradientHook("", module, key), module._forward_hooks[key]))
                module._forward_hooks[key] = _silent

    def wake(self) -> None:
        """Put back the silenced hooks that their owner has not removed."""
        for hook, function in self._silenced:
            if hook.module._forward_hooks.get(hook.key) is _silent:
                hook.module._forward_hooks[hook.key] = function
        self._silenced.clear()
