"""`pulse`: tells a `Progress` how far a batch is while it is under way, so that even a single batch has a time left.

Layers are counted as they run forward and, by the gradient of their output, backward; a forward that checkpointing repeats
counts once. Nothing that the model computes is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from layercard.progress import Progress

FORWARD_SHARE = 1 / 3
"""Of a forward and backward: the backward has statistics to form, or layers to recompute, beside its own work."""


@contextmanager
def pulse(layers: Sequence[nn.Module], progress: Progress, *, backward: bool) -> Iterator[None]:
    """Tell `progress` inside the block how far the batch under way is; `backward`: whether it is run backward too."""
    share = FORWARD_SHARE if backward else 1.0
    with ExitStack() as hooks:
        for number, layer in enumerate(layers, start=1):
            hooks.callback(layer.register_forward_hook(_hook(number, len(layers), share, progress)).remove)
        yield


def _hook(number: int, depth: int, share: float, progress: Progress) -> Callable[[nn.Module, Any, Any], None]:
    def returned(gradient: Tensor) -> None:
        progress.reach(share + (1 - share) * (depth - number) / depth)

    def ran(module: nn.Module, inputs: Any, output: Any) -> None:
        progress.reach(share * number / depth)
        hidden = output[0] if isinstance(output, tuple | list) else output
        if share < 1 and isinstance(hidden, Tensor) and hidden.requires_grad:
            hidden.register_hook(returned)

    return ran
