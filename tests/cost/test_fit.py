"""Verdicts, and the changes that make a run fit, on a model whose bytes are written down."""

from dataclasses import replace

import torch

from layercard.cost.fit import Setup, Way, peak_of, verdict, ways_to_fit
from layercard.cost.peak import LayerBytes, ModelBytes, PassBytes, Training
from layercard.cost.traced import RunShape

SETUP = Setup(8, 1024, RunShape(tiled_head=False), Training(checkpointing=False, optimizer_state=0))
LAYERS = (0, 1, 2, 3)


def traced(setup: Setup) -> ModelBytes:
    """Weights of 1000 bytes in 16 bits; a layer keeps 10 bytes a row of 1024 tokens, the head holds 100, or 10 in tiles."""
    examples = setup.rows * setup.tokens // 1024
    kept = 10 * examples
    layer = LayerBytes(1, *[PassBytes(kept, kept, kept)] * 3, still=kept)
    head = (10 if setup.shape.tiled_head else 100) * examples
    weights = 1000 * (setup.shape.bits or 16) // 16
    return ModelBytes(weights, (layer,) * 4, hidden=examples, shared=0, head=head)


def test_a_verdict_leaves_room_for_what_is_not_counted():
    assert [verdict(peak, 100) for peak in (90, 91, 100, 101)] == ["yes", "tight", "tight", "no"]


def test_each_change_alone_is_as_small_as_does():
    assert peak_of(SETUP, LAYERS, traced).total == 1000 + 4 + 4 * 80 + 800
    assert ways_to_fit(SETUP, LAYERS, 1700, traced, LAYERS) == [
        Way("a loss that never holds all logits", 1000 + 4 + 4 * 80 + 80),
        Way("batch size 2", 1000 + 4 + 4 * 20 + 200),
        Way("rows of at most 256 tokens", 1000 + 4 + 4 * 20 + 200),
        Way("4-bit weights", 250 + 4 + 4 * 80 + 800),
    ]


def test_fewer_and_higher_layers_are_named_where_they_do():
    setup = replace(SETUP, shape=RunShape())
    ways = ways_to_fit(setup, LAYERS, 1450, traced, LAYERS)
    assert ways[0] == Way("adapters in the last 2 layers alone", 1000 + 2 + 2 * 80 + 80)


def test_what_no_change_does_alone_is_done_together_with_the_largest_batch():
    ways = ways_to_fit(SETUP, LAYERS, 420, traced, LAYERS)
    assert ways == [
        Way("gradient checkpointing, a loss that never holds all logits and 4-bit weights", 250 + 4 + 4 * 8 + 80)
    ]
    smaller = ways_to_fit(SETUP, LAYERS, 320, traced, LAYERS)
    assert smaller[0].change.startswith("batch size 2, gradient checkpointing, ")


def test_where_nothing_helps_nothing_is_named():
    assert ways_to_fit(SETUP, LAYERS, 200, traced, LAYERS) == []


def test_packed_weights_train_adapters_in_bfloat16():
    seen = []

    def spy(setup: Setup) -> ModelBytes:
        seen.append((setup.shape.bits, setup.shape.adapter_dtype))
        return traced(setup)

    ways_to_fit(SETUP, LAYERS, 1000, spy, LAYERS)
    assert (4, torch.bfloat16) in seen and (None, torch.float32) in seen
