"""Cards that speak for a model, made of shares kept and costs, and queries that they match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from card_documents import DIGEST, measured
from layercard.cards.card import LayerCard
from layercard.cards.query import CardQuery

DEPTH = 12
TARGETS = ("self_attn.q_proj", "self_attn.v_proj")
LINEAR = (*TARGETS, "self_attn.k_proj", "self_attn.o_proj", "mlp.down_proj")
MODEL = {
    "id": "org/tiny",
    "revision": None,
    "num_layers": DEPTH,
    "architecture": "LlamaForCausalLM",
    "fingerprint": DIGEST,
    "sizes": {"hidden_size": 32},
    "dtype": "float32",
    "quantization": None,
    "gguf": None,
}
Kept = Mapping[str, tuple[float, float | None]]
"""By outcome: the share kept of all-layer LoRA's gain, and the step seconds over all-layer LoRA's."""
REGIMES: Kept = {"high": (0.99, 0.9), "mid": (0.96, 0.7), "low": (0.91, 0.5)}
DEPTHWISE: dict[str, tuple[int, ...]] = {
    "uniform": (1, 3, 5, 7, 9, 11),
    "upper_uniform": (5, 7, 9, 11),
    "last": (9, 10, 11),
}


def ranking(seed: int = 0, layers: int = DEPTH, *, noise: float = 0.0, of: int = 0) -> np.ndarray:
    """Resnorm that falls with depth, with bumps of its own, the same for every `of` but for some noise."""
    shared = np.exp(-np.arange(layers) / layers + 0.5 * np.random.default_rng(of).normal(size=layers))
    found: np.ndarray = shared * np.exp(noise * np.random.default_rng(1000 + seed).normal(size=layers))
    return found


def reference(
    dataset: str = "numbers",
    *,
    resnorm: Sequence[float] | np.ndarray | None = None,
    kept: Kept = REGIMES,
    depthwise: Kept | None = None,
    status: str = "reproduced",
    **changes: Any,
) -> dict[str, Any]:
    """Return the document of a card that kept so much at such a cost; `changes` replace whole top-level fields."""
    found = [float(value) for value in (ranking() if resnorm is None else resnorm)]
    shares = {**kept, **(depthwise or {})}
    losses = {name: 2.0 - share for name, (share, _) in shares.items()} | {"all_layers": 1.0, "untuned": 2.0}
    model = changes.pop("model", None)
    made_twice = {"tolerance": 0.05, "largest_difference": 0.01, "date": "2026-01-03"}
    document = measured(
        dataset=dataset,
        resnorm=found,
        losses=losses,
        status=status,
        reproduction=made_twice if status == "reproduced" else None,
        **({"lora": {"rank": 8, "alpha": 16, "targets": list(TARGETS)}} | changes),
    )
    if model is not None:
        document["model"] = model
    for row in document["outcomes"]:
        if row["name"] in shares:
            row["cost"]["step_seconds_ratio"] = shares[row["name"]][1]
        if row["name"] in (depthwise or {}):
            chosen = list(DEPTHWISE[row["name"]])
            row |= {"kind": "strategy", "strategy": row["name"], "layers": chosen, "count": len(chosen)}
    return document


def card(dataset: str = "numbers", **values: Any) -> LayerCard:
    """Return the card of `reference`."""
    return LayerCard(reference(dataset, **values), f"{dataset}.json")


def query(
    importance: np.ndarray | None = None, *, targets: Sequence[str] = TARGETS, facts: Any = None, **model: Any
) -> CardQuery:
    """Return a query of the model that the cards are of, on data that rank its layers by `importance`."""
    found = ranking() if importance is None else importance
    return CardQuery(MODEL | model, frozenset(targets), frozenset(LINEAR), found, facts or {})
