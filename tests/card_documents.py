"""Small Layer Cards as documents, valid as they are, to be changed by tests."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from layercard.cards.strata import regimes

DIGEST = "0123456789abcdef" * 4
RESNORM = (6.0, 5.0, 4.0, 3.5, 2.0, 1.0)


def measured(
    *,
    model: str = "org/tiny",
    dataset: str = "numbers",
    resnorm: Sequence[float] = RESNORM,
    losses: dict[str, float] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Return a measured card: `losses` (lower is better) by outcome, `changes` replace whole top-level fields."""
    depth, found = len(resnorm), losses or {"high": 1.5, "mid": 1.4, "low": 1.7, "all_layers": 1.3, "untuned": 2.0}
    strata = regimes(resnorm)
    document: dict[str, Any] = {
        "schema_version": 1,
        "license": "CC-BY-4.0",
        "status": "community",
        "quick": False,
        "reproduction": None,
        "model": {
            "id": model,
            "revision": None,
            "num_layers": depth,
            "architecture": "LlamaForCausalLM",
            "fingerprint": DIGEST,
            "sizes": {"hidden_size": 32},
            "parameters": 1000,
            "dtype": "float32",
            "quantization": None,
            "gguf": None,
        },
        "dataset": {
            "id": dataset,
            "revision": None,
            "digest": DIGEST,
            "split": "train",
            "columns": {"prompt": "question", "completion": "answer"},
            "template": None,
            "examples": 8,
            "tokens": 64,
            "heldout": {"digest": DIGEST, "examples": 4},
        },
        "lora": {"rank": 8, "alpha": 16, "targets": ["q_proj", "v_proj"]},
        "probe": {"examples": 8, "tokens": 64, "seed": 0, "rank": 8, "batch_size": 4, "max_length": 64},
        "training": {"steps": 4, "batch_size": 2, "learning_rate": 1e-3, "schedule": "linear", "seeds": [0, 1]},
        "scorers": {"resnorm": {"plugin": "layercard"}},
        "layers": [
            {
                "layer": layer,
                "scores": {"resnorm": {"importance": value, "raw": value}},
                "energy": {"q_proj": 1.0, "v_proj": 2.0},
                "effective_rank": None,
            }
            for layer, value in enumerate(resnorm)
        ],
        "main_metric": "heldout_loss",
        "outcomes": [outcome(name, loss, found["untuned"], strata.get(name), resnorm) for name, loss in found.items()],
        "stability": {"kendall_tau_over_seeds": 0.9, "rank_correlation": {"1": 0.8, "4": 0.9, "8": 1.0}},
        "provenance": {"kind": "measured", "versions": {"layercard": "0.1.0"}, "hardware": "CPU", "date": "2026-01-02"},
    }
    return document | copy.deepcopy(changes)


def outcome(
    name: str, loss: float, untuned: float, layers: Sequence[int] | None, resnorm: Sequence[float]
) -> dict[str, Any]:
    """Return one outcome: a regime where `layers` are given, all layers or none otherwise."""
    chosen = list(layers) if layers else ([] if name == "untuned" else list(range(len(resnorm))))
    held = [resnorm[i] for i in layers] if layers else None
    return {
        "name": name,
        "kind": "regime" if layers else "reference",
        "strategy": None,
        "layers": chosen,
        "count": len(chosen),
        "resnorm_range": [min(held), max(held)] if held else None,
        "metrics": {"heldout_loss": {"value": loss, "direction": "lower", "seeds": [loss - 0.01, loss + 0.01]}},
        "cost": {"step_seconds_ratio": 0.5 + 0.5 * len(chosen) / len(resnorm), "peak_memory_ratio": None},
        "gain": {"metric": "heldout_loss", "value": untuned - loss, "direction": "lower"},
    }


def published(*, model: str = "org/tiny", dataset: str = "words", **changes: Any) -> dict[str, Any]:
    """Return a published card: no layers, two regimes and all layers, better when higher."""
    values = {"high": 2.0, "mid": 2.4, "all_layers": 2.5}
    document: dict[str, Any] = {
        "schema_version": 1,
        "license": "CC-BY-4.0",
        "status": "community",
        "model": {"id": model, "num_layers": 6, "fingerprint": None},
        "dataset": {"id": dataset},
        "lora": {"rank": None, "alpha": None, "targets": None},
        "scorers": {},
        "layers": [],
        "main_metric": "cider",
        "outcomes": [
            {
                "name": name,
                "kind": "reference" if name == "all_layers" else "regime",
                "layers": None,
                "count": 6 if name == "all_layers" else 2,
                "metrics": {"cider": {"value": value, "direction": "higher"}},
                "cost": {"step_seconds_ratio": 1.0 if name == "all_layers" else 0.75},
            }
            for name, value in values.items()
        ],
        "provenance": {"kind": "published", "document": "a paper", "tables": ["3"], "note": "two layers each"},
    }
    return document | copy.deepcopy(changes)
