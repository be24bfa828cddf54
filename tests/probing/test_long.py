"""A model of eighty layers: the probe holds no more for six batches than for one, and scores every layer."""

from __future__ import annotations

import numpy as np
import torch

import layercard
from layercard.cost.memory import peak_bytes
from layercard.pipeline.probe import score
from layercard.probing.statistics import LayerStatistics
from tiny import collate, tiny_examples, tiny_model

LAYERS = 80


def test_memory_is_flat_in_the_number_of_batches() -> None:
    model = tiny_model("llama", num_layers=LAYERS)
    examples = tiny_examples(2)
    batches = [collate(examples)] * 6
    found: dict[int, int] = {}
    held: dict[int, LayerStatistics] = {}

    def probe(count: int) -> None:
        held[count] = layercard.probe(model, batches[:count], show_progress=False)

    for count in (1, 6):
        found[count] = peak_bytes(lambda n=count: probe(n), model, torch.device("cpu"))
    assert found[6] <= 1.01 * found[1]
    assert held[6].num_layers == LAYERS
    assert np.isfinite(score(held[6], "resnorm").importance).all()
