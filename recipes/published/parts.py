"""The tables, and the parts of which every published card is made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TABLES: dict[str, Any] = json.loads((Path(__file__).parent / "tables.json").read_text(encoding="utf-8"))
MODELS = {
    "GPT-2 Medium": ("openai-community/gpt2-medium", 24),
    "GPT-2 Large": ("openai-community/gpt2-large", 36),
    "Llama-2-7B": ("meta-llama/Llama-2-7b-hf", 32),
    "Qwen3-8B": ("Qwen/Qwen3-8B", 36),
    "DeBERTa-v3-base": ("microsoft/deberta-v3-base", 12),
    "Llama-3.1-8B": ("meta-llama/Llama-3.1-8B", 32),
    "BERT-base": ("google-bert/bert-base-uncased", 12),
}
"""Hub id and number of layers; depths are those of the models' own configurations."""
METRICS = {
    "chrF++": ("chrfpp", "higher"),
    "TER": ("ter", "lower"),
    "BERT-F1": ("bert_f1", "higher"),
    "BLEU": ("bleu", "higher"),
    "NIST": ("nist", "higher"),
    "METEOR": ("meteor", "higher"),
    "ROUGE-L": ("rouge_l", "higher"),
    "MNLI": ("mnli_accuracy", "higher"),
    "QNLI": ("qnli_accuracy", "higher"),
    "QQP": ("qqp_accuracy", "higher"),
    "SST-2": ("sst2_accuracy", "higher"),
    "MRPC": ("mrpc_accuracy", "higher"),
    "RTE": ("rte_accuracy", "higher"),
    "CoLA": ("cola_matthews", "higher"),
    "STS-B": ("stsb_pearson", "higher"),
    "WNLI": ("wnli_accuracy", "higher"),
}


def figure(document: str, table: str, row: str, column: str) -> Any:
    """Return one entry of a table: a number, or mean and standard deviation."""
    found = TABLES[document]["tables"][table]
    return found["rows"][row][found["columns"].index(column)]


def metric(value: float, direction: str, spread: float | None = None) -> dict[str, Any]:
    """Return a metric's entry; `direction` says whether `higher` or `lower` is better."""
    return {"value": value, "direction": direction} | ({} if spread is None else {"spread": spread})


def outcome(
    name: str, kind: str, strategy: str | None, count: int, metrics: Mapping[str, Any], cost: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return an outcome's entry; publications do not name the layers."""
    found = {"name": name, "kind": kind, "strategy": strategy, "layers": None, "count": count}
    return found | {"metrics": dict(metrics), "cost": None if cost is None else dict(cost)}


def card_document(
    model: str,
    dataset: str,
    document: str,
    tables: list[str],
    note: str,
    main_metric: str,
    outcomes: list[dict[str, Any]],
    stability: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a whole card; what the document does not state is null."""
    model_id, depth = MODELS[model]
    return {
        "schema_version": 1,
        "license": "CC-BY-4.0",
        "status": "community",
        "quick": False,
        "reproduction": None,
        "model": {"id": model_id, "revision": None, "num_layers": depth, "fingerprint": None},
        "dataset": {"id": dataset.lower(), "revision": None},
        "lora": {"rank": None, "alpha": None, "targets": None},
        "probe": None,
        "training": None,
        "scorers": {},
        "layers": [],
        "main_metric": main_metric,
        "outcomes": outcomes,
        "stability": stability,
        "provenance": {
            "kind": "published",
            "document": TABLES[document]["document"],
            "tables": tables,
            "note": note,
        },
    }


def rounded(value: float, digits: int = 4) -> float:
    """Return a derived number in as many digits as its figures bear."""
    return round(value, digits)
