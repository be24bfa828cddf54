"""What a layer, its adapters and the head of a model cost beside each other, for `plan`: timed where that takes seconds.

Timed is a model of two layers with random weights, made from the configuration, so that nothing is downloaded. Where
its layers are too large for the machine to time at once, costs are estimated from parameters, and that is said.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import PreTrainedModel

from layercard.anatomy.adaptable import layers_held
from layercard.anatomy.layers import LayerStack, find_layers
from layercard.anatomy.targets import find_targets
from layercard.cli.positions import longest_input
from layercard.cost.predict import UnitCosts
from layercard.cost.tracer import random_batch
from layercard.cost.unit_costs import estimate_unit_costs, measure_unit_costs
from layercard.precision import fast_dtype

LAYERS, TOKENS, ROUNDS = 2, 256, 3
SECONDS = 1.0
"""Rounds of a small layer go on for so long: three of a millisecond each say little on a machine that others use."""
LARGEST_ON_CPU = 3e7
"""Parameters of the largest layer that is timed on a CPU."""
UNLIKE = "two layers alone do not hold the target modules, as this model's layers differ"


def plan_costs(
    bare: PreTrainedModel,
    stack: LayerStack,
    targets: list[str] | None,
    *,
    timed: bool,
    adaptable: tuple[int, ...] | None = None,
) -> tuple[UnitCosts, str]:
    """Return the unit costs of `bare`, a model without weights, and how they were found.

    `adaptable` are the layers that will have adapters (None: every layer); one of those is timed.
    """
    in_layer = sum(p.numel() for layer in stack.layers for p in layer.parameters()) // len(stack)
    if not timed:
        return estimate_unit_costs(bare, stack), "costs estimated from parameters"
    if in_layer > LARGEST_ON_CPU and not torch.cuda.is_available():
        return estimate_unit_costs(
            bare, stack
        ), "costs estimated from parameters: a layer is too large to be timed on this CPU"
    width = min(TOKENS, longest_input(bare))
    kept = (0, (adaptable or range(len(stack)))[-1])
    measured = _measured(bare, stack, targets, kept, width)
    if measured is None:
        return estimate_unit_costs(bare, stack), f"costs estimated from parameters: {UNLIKE}"
    return measured, f"costs timed on {LAYERS} layers of random weights and {width} tokens"


def _measured(
    bare: PreTrainedModel, stack: LayerStack, targets: list[str] | None, kept: tuple[int, int], width: int
) -> UnitCosts | None:
    """Time a model of the `kept` layers, or return None where the last of them lost its target modules with the others."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.random.fork_rng(["cuda"] if device == "cuda" else []):
        torch.manual_seed(0)
        model: Any = type(bare)(_shallow(bare.config, kept)).to(device, fast_dtype(device, bare.dtype)).train()
        batch = {name: values.to(device) for name, values in random_batch(model, 1, width).items()}
        shallow = find_layers(model, path=stack.path)
        if len(shallow) - 1 not in layers_held(shallow, targets):
            return None
        names = [t.name for t in find_targets(model, shallow, names=targets) if t.layer == len(shallow) - 1]
        return measure_unit_costs(model, shallow, batch, target_modules=names, rounds=ROUNDS, seconds=SECONDS)


DEPTHS = ("num_hidden_layers", "num_decoder_layers", "num_encoder_layers", "encoder_layers", "decoder_layers", "depth")
"""What configurations call the number of layers of their stacks; transformers maps others to the first."""


def _shallow(config: Any, kept: tuple[int, int]) -> Any:
    """The same configuration with fewer layers in every stack; lists of one item a layer are cut to the `kept` layers."""
    shallow = copy.deepcopy(config)
    text = shallow.get_text_config()
    depth = text.num_hidden_layers
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == depth:
            setattr(text, name, [value[layer] for layer in sorted(set(kept))])
    for part in (shallow, *(getattr(shallow, name) for name in shallow.sub_configs)):
        for name in DEPTHS:
            if isinstance(number := getattr(part, name, None), int):
                setattr(part, name, min(LAYERS, number))
    return shallow
