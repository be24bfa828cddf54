"""Cards from "Activation-Guided Layer Selection for LoRA": the k layers with the largest activation norms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from published.parts import METRICS, MODELS, TABLES, card_document, figure, metric, outcome, rounded

ACT = (
    "Layers are ranked by the norm of the attention block's output (the score `activation`) and the first k adapted; "
    "which ones is not named. "
)
GLUE = ACT + (
    "`glue_mean` is the mean of table 3's nine tasks. The scores that tables 4 and 5 print (`as_printed`) are not all that "
    "mean: table 4 has both Llama-3.1-8B selections above LoRA, tables 3 and 5 below it or level. GPU hours are table "
    "4's; their ratio is table 5's, which the text repeats and which table 4 contradicts for 16 layers of Llama-3.1-8B. "
    "Memory and inference latency, adapters unmerged, are table 4's; table 5 prints other latencies. Stability is of "
    "SST-2 over 10 seeds. AdaLoRA's rows are left out."
)
SST2 = ACT + (
    "Accuracy, loss, GPU hours and the run's peak memory are table 6's (1000 steps, 3 seeds). Seconds of a step and the "
    "peak memory of a step are table 7's sweep over the number of layers, 12 being all; its accuracies stand in figure 7 "
    "as a picture and are left out. The two disagree about memory: 6 layers take more than all in table 6, less in "
    "table 7. The parameter counts are those of the uncased model and of rank 8. Other methods' rows are left out."
)


def cards() -> Iterator[dict[str, Any]]:
    """Yield the documents of DeBERTa-v3-base and Llama-3.1-8B on GLUE, and of BERT-base on SST-2."""
    yield _glue("DeBERTa-v3-base", ("2", "6"), ["query_proj", "value_proj"], "1 NVIDIA L4", 200)
    yield _glue("Llama-3.1-8B", ("16", "24"), ["q_proj", "v_proj"], "4 NVIDIA A100", 10)
    yield _sst2()


def _glue(model: str, chosen: tuple[str, str], targets: list[str], hardware: str, steps: int) -> dict[str, Any]:
    outcomes = []
    for k in ("LoRA", *chosen):
        row = f"{model}/{k}"
        pairs = {
            METRICS[task]: figure("act-lora", "3", row, task) for task in TABLES["act-lora"]["tables"]["3"]["columns"]
        }
        metrics = {name: metric(mean, better, spread) for (name, better), (mean, spread) in pairs.items()}
        mean = sum(value for value, _ in pairs.values()) / len(pairs)
        metrics["glue_mean"] = metric(rounded(mean), "higher")
        outcomes.append(_selected(k, MODELS[model][1], metrics, _glue_cost(model, row)))
        outcomes[-1]["as_printed"] = {f"glue_table_{table}": figure("act-lora", table, row, "GLUE") for table in "45"}
    stable = {s: figure("act-lora", "9", model, f"{s} norms")[0] for s in ("activation", "gradient")}
    card = card_document(
        model,
        "GLUE",
        "act-lora",
        ["3", "4", "5", "9"],
        GLUE,
        "glue_mean",
        outcomes,
        stability={
            "kendall_tau_over_seeds": stable["activation"],
            "score": "activation",
            "gradient_norms": stable["gradient"],
        },
    )
    dtype = "bfloat16" if model == "Llama-3.1-8B" else "float16"
    card["model"]["quantization"] = "bitsandbytes 4-bit nf4" if model == "Llama-3.1-8B" else None
    card["lora"] = {"rank": 8, "alpha": 16, "targets": targets}
    card["probe"] = {"examples": None, "tokens": None, "seed": None, "rank": None, "optimizer_steps": steps}
    card["training"] = {"epochs": 3, "batch_size": 32, "learning_rate": 2e-4, "max_length": 128, "dtype": dtype}
    card["training"]["seed_count"] = 3
    card["provenance"]["hardware"] = hardware
    return card


def _glue_cost(model: str, row: str) -> dict[str, Any]:
    def aggregate(column: str) -> tuple[float, float]:
        own, whole = (figure("act-lora", "4", name, column) for name in (row, f"{model}/LoRA"))
        return own, rounded(own / whole)

    hours, _ = aggregate("GPU hours")
    memory, memory_ratio = aggregate("memory GiB")
    latency, latency_ratio = aggregate("latency ms")
    return {
        "gpu_hours": hours,
        "gpu_hours_ratio": rounded(1 - figure("act-lora", "5", row, "GPU hours saved") / 100),
        "peak_memory_gib": memory,
        "peak_memory_ratio": memory_ratio,
        "inference_latency_ms": latency,
        "inference_latency_ratio": latency_ratio,
        "trainable_parameters": figure("act-lora", "4", row, "trainable parameters"),
    }


def _sst2() -> dict[str, Any]:
    outcomes = []
    for k in ("LoRA", "2", "4", "6", "8", "10"):
        step = {c: figure("act-lora", "7", "12" if k == "LoRA" else k, c) for c in ("total", "peak MiB")}
        whole = {c: figure("act-lora", "7", "12", c) for c in step}
        cost = {
            "step_seconds": rounded(step["total"] / 1000, 5),
            "step_seconds_ratio": rounded(step["total"] / whole["total"]),
            "peak_memory_ratio": rounded(step["peak MiB"] / whole["peak MiB"]),
        }
        outcomes.append(_selected(k, 12, _sst2_metrics(k), cost | _sst2_run(k)))
    name = "full fine-tuning"
    outcomes.append(outcome("full_fine_tuning", "reference", None, 12, _sst2_metrics(name), _sst2_run(name)))
    card = card_document("BERT-base", "SST2", "act-lora", ["6", "7"], SST2, "accuracy", outcomes)
    card["lora"] = {"rank": 8, "alpha": 16, "targets": ["query", "value"]}
    card["training"] = {"steps": 1000, "learning_rate": 2e-4, "dtype": "float16", "seed_count": 3}
    card["provenance"]["hardware"] = "1 NVIDIA A100 40 GB"
    return card


def _sst2_metrics(row: str) -> dict[str, Any]:
    if row not in TABLES["act-lora"]["tables"]["6"]["rows"]:
        return {}
    (accuracy, spread), (loss, loss_spread) = (figure("act-lora", "6", row, c) for c in ("accuracy", "loss"))
    percent = metric(rounded(loss / 100), "lower", rounded(loss_spread / 100))
    return {"accuracy": metric(accuracy, "higher", spread), "loss": percent}


def _sst2_run(row: str) -> dict[str, Any]:
    if row not in TABLES["act-lora"]["tables"]["6"]["rows"]:
        return {}
    hours, whole = (figure("act-lora", "6", name, "GPU hours") for name in (row, "LoRA"))
    memory, parameters = (figure("act-lora", "6", row, c) for c in ("memory GiB", "trainable parameters"))
    costs = {"gpu_hours": hours, "gpu_hours_ratio": rounded(hours / whole), "run_peak_memory_gib": memory}
    return costs | {"trainable_parameters": parameters}


def _selected(k: str, depth: int, metrics: Mapping[str, Any], cost: Mapping[str, Any]) -> dict[str, Any]:
    """All-layer LoRA, or the k layers with the largest activation norms."""
    if k == "LoRA":
        return outcome("all_layers", "reference", None, depth, metrics, cost)
    return outcome(f"activation_high_{k}", "strategy", "high", int(k), metrics, cost) | {"score": "activation"}
