"""A batch under way tells how far it is: layers one after another, forward and back, and nothing is left behind."""

from __future__ import annotations

from typing import Any

import pytest

from layercard.anatomy.layers import find_layers
from layercard.probing.pulse import FORWARD_SHARE, pulse
from layercard.progress import Progress
from tiny import collate, tiny_examples, tiny_model


class Told(Progress):
    """Keeps every share that it is told."""

    def __init__(self) -> None:
        super().__init__("probing", show=False)
        self.shares: list[float] = []

    def reach(self, share: float) -> None:
        self.shares.append(share)
        super().reach(share)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_a_forward_and_backward_is_told_layer_by_layer(family: str) -> None:
    model: Any = tiny_model(family)
    layers, told = find_layers(model).layers, Told()
    before = [len(layer._forward_hooks) for layer in layers]
    with pulse(layers, told, backward=True):
        model(**collate(tiny_examples(2, encoder=family == "bert"))).loss.backward()
    assert [len(layer._forward_hooks) for layer in layers] == before
    forward = [FORWARD_SHARE * number / len(layers) for number in range(1, len(layers) + 1)]
    backward = [FORWARD_SHARE + (1 - FORWARD_SHARE) * passed / len(layers) for passed in range(len(layers))]
    assert told.shares == pytest.approx(forward + backward)


def test_without_a_backward_the_forward_is_all() -> None:
    model, told = tiny_model("llama"), Told()
    with pulse(find_layers(model).layers, told, backward=False):
        model(**collate(tiny_examples(2)))
    assert told.shares == [0.25, 0.5, 0.75, 1.0]
