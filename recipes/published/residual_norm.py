"""Cards from "Understanding and Guiding Layer Placement …": regimes by projected residual norm.

Its top, mid and bottom are our high, mid and low; the notes on the cards say what that leaves open.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from published.parts import METRICS, MODELS, TABLES, card_document, figure, metric, outcome, rounded

PLACES = {
    "high": ("regime", None),
    "mid": ("regime", None),
    "low": ("regime", None),
    "uniform": ("strategy", "uniform"),
    "random": ("strategy", "random"),
}
STRATA = (
    "The document's top, mid and bottom are the layers with the largest, middle and smallest projected residual norm: "
    "high, mid and low here, {count} layers each, not a third of the model, and not named. The norm falls with depth in "
    "these models, so high lies at the input and low at the output. LoRA's rank, alpha and target modules are not stated. "
)
GPT2 = STRATA.format(count=4) + (
    "No result with all layers or without training is given, so shares kept are unknown. Costs of each placement stand in "
    "figures 4 and 6 as pictures and are left out; those given in words are relative to the high regime, and stand under "
    "`over_high`."
)
LLM = STRATA.format(count=5) + (
    "Percent; table 4 names no metric, table 6 calls it accuracy. The low regime is Bottom-5 in table 4 and Last-5 in "
    "table 5; table 6's speedups, which are table 5's, show that both are one. Uniform-5 was not timed. Whether the base "
    "or a chat model was used is not stated. The correlations between data sets stand in figure 5 as a picture and are "
    "left out."
)
QWEN = " The document counts 35 layers; the model has 36."


def cards() -> Iterator[dict[str, Any]]:
    """Yield the documents of GPT-2, Llama-2-7B and Qwen3-8B on their data sets."""
    for model in ("GPT-2 Medium", "GPT-2 Large"):
        for dataset, table in (("DART", "7"), ("E2E", "8"), ("WebNLG", "9")):
            yield _gpt2(model, dataset, table)
    for model in ("Llama-2-7B", "Qwen3-8B"):
        for dataset in ("GSM8K", "HellaSwag", "SVAMP", "MathQA"):
            yield _llm(model, dataset)


def _gpt2(model: str, dataset: str, table: str) -> dict[str, Any]:
    cell = f"{model}/{dataset}"
    columns = [c for c in TABLES["layer-card"]["tables"][table]["columns"] if c.startswith(f"{model}/")]
    outcomes = []
    for name, row in {"high": "top", "mid": "mid", "low": "bottom", "uniform": "uniform", "random": "random"}.items():
        metrics = {"cider": metric(figure("layer-card", "3", row, cell), "higher")}
        for column in columns:
            name_here, direction = METRICS[column.rsplit("/", 1)[-1]]
            metrics[name_here] = metric(figure("layer-card", table, row, column), direction)
        cost = _over_high(model, dataset, row)
        outcomes.append(outcome(name, *PLACES[name], 4, metrics, {"over_high": cost} if cost else None))
    one, eight, four = (figure("layer-card", "2", cell, pair) for pair in ("1-4", "1-8", "4-8"))
    ranks = {"1": eight, "4": four, "8": 1.0}
    stability = {"kendall_tau_over_seeds": None, "rank_correlation": ranks, "rank_1_with_rank_4": one}
    tables = ["2", "3", table, *(["section 6"] if model == "GPT-2 Medium" else [])]
    tables += ["section 7"] if dataset == "WebNLG" else []
    return card_document(model, dataset, "layer-card", tables, GPT2, "cider", outcomes, stability=stability)


def _over_high(model: str, dataset: str, row: str) -> dict[str, Any]:
    """What the text says of training time and peak memory relative to the high regime."""
    if dataset == "WebNLG" and row == "bottom":
        saved, lower = (
            figure("layer-card", "section 7", model, c) for c in ("time saved in percent", "memory times lower")
        )
        return {"training_seconds_ratio": rounded(1 - saved / 100), "peak_memory_ratio": rounded(1 / lower)}
    if model == "GPT-2 Medium" and row in TABLES["layer-card"]["tables"]["section 6"]["rows"]:
        bounds = [rounded(1 - s / 100) for s in TABLES["layer-card"]["tables"]["section 6"]["rows"][row]]
        seconds, memory = sorted(bounds[:2]), sorted(bounds[2:])
        return {"training_seconds_ratio_range": seconds, "peak_memory_ratio_range": memory, "over": "DART, E2E, WebNLG"}
    return {}


def _llm(model: str, dataset: str) -> dict[str, Any]:
    cell, depth = f"{model}/{dataset}", MODELS[model][1]
    everything = figure("layer-card", "5", "All-layer", cell)
    rows = {"high": ("Top-5", "Top-5"), "mid": ("Mid-5", "Mid-5"), "low": ("Bottom-5", "Last-5")}
    outcomes = []
    for name, (reached, timed) in {**rows, "uniform": ("Uniform-5", None), "all_layers": ("All-layer",) * 2}.items():
        metrics = {"accuracy": metric(figure("layer-card", "4", reached, cell), "higher")}
        speed = timed and figure("layer-card", "5", timed, cell)
        cost = speed and {"steps_per_second": speed, "step_seconds_ratio": rounded(everything / speed)}
        kind, strategy = PLACES.get(name, ("reference", None))
        outcomes.append(outcome(name, kind, strategy, depth if name == "all_layers" else 5, metrics, cost or None))
    note = LLM + (QWEN if model == "Qwen3-8B" else "")
    return card_document(model, dataset, "layer-card", ["4", "5", "6"], note, "accuracy", outcomes)
