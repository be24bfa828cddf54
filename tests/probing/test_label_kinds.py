"""The same rows give the same scores whatever their padding and width, for every kind of label a model's loss reads.

The oracle is `loss.backward()` on one unpadded example at a time, through the adapters themselves.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kinds import KINDS, build, oracle, rows

import layercard
from layercard.anatomy.layers import find_layers
from layercard.pipeline.probing import score


@cache
def examples_of(name: str) -> tuple[Any, list[dict[str, Any]], np.ndarray]:
    """Return the model, six examples of 2 to 9 tokens, and their scores by autograd."""
    kind = KINDS[name]
    model = build(kind)
    generator = torch.Generator().manual_seed(5)
    examples = [kind.example(generator, length) for length in (9, 4, 6, 2, 7, 6)]
    layers = find_layers(model, path=kind.stack).layers
    return model, examples, oracle(model, [rows([example]) for example in examples], layers)


def probed(name: str, batches: list[dict[str, torch.Tensor]]) -> Any:
    return layercard.probe(examples_of(name)[0], batches, layers_path=KINDS[name].stack, show_progress=False)


@pytest.mark.parametrize("name", KINDS)
@given(data=st.data())
@settings(max_examples=6, deadline=None)
def test_scores_are_those_of_each_example_alone(name: str, data: st.DataObject) -> None:
    _, examples, expected = examples_of(name)
    sides = st.sampled_from(["right", "left"] if KINDS[name].relative else ["right"])
    size = data.draw(st.integers(1, 6), label="batch size")
    order = data.draw(st.permutations(range(len(examples))), label="order")
    batches = []
    for first in range(0, len(examples), size):
        group = [examples[i] for i in order[first : first + size]]
        paddings = {"extra": data.draw(st.integers(0, 4)), "target_extra": data.draw(st.integers(0, 4))}
        batches.append(rows(group, side=data.draw(sides), **paddings))
    statistics = probed(name, batches)
    assert statistics.examples == len(examples)
    np.testing.assert_allclose(score(statistics, "resnorm").raw, expected, rtol=2e-5)
