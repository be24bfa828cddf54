"""The figures of published cards, derived again from the tables; and the tables against each other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from layercard.cards.library import shipped_dir

RECIPES = shipped_dir().parent
TABLES = json.loads((RECIPES / "published" / "tables.json").read_text(encoding="utf-8"))
ROWS = {"high": "top", "mid": "mid", "low": "bottom", "uniform": "uniform", "random": "random"}
GPT2 = [(size, data) for size in ("Medium", "Large") for data in ("DART", "E2E", "WebNLG")]
LLM = [(model, data) for model in ("Llama-2-7B", "Qwen3-8B") for data in ("GSM8K", "HellaSwag", "SVAMP", "MathQA")]
GLUE = [("DeBERTa-v3-base", (2, 6)), ("Llama-3.1-8B", (16, 24))]


def cell(document: str, table: str, row: str, column: str) -> Any:
    found = TABLES[document]["tables"][table]
    return dict(zip(found["columns"], found["rows"][row], strict=True))[column]


def paper(table: str, row: str, column: str) -> Any:
    return cell("layer-card", table, row, column)


def act(table: str, row: str, column: str) -> Any:
    return cell("act-lora", table, row, column)


def card(key: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((shipped_dir() / f"{key}.json").read_text(encoding="utf-8"))
    assert found["provenance"]["kind"] == "published"
    return found


def outcomes(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in document["outcomes"]}


def values(outcome: dict[str, Any]) -> dict[str, float]:
    return {name: metric["value"] for name, metric in outcome["metrics"].items()}


def test_the_cards_are_what_the_script_makes_of_the_tables() -> None:
    script = [sys.executable, str(RECIPES / "make_published.py"), "--check"]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == len(GPT2) + len(LLM) + len(GLUE) + 1


@pytest.mark.parametrize(("size", "data"), GPT2)
def test_gpt2(size: str, data: str) -> None:
    document, own = card(f"gpt2-{size.lower()}/{data.lower()}"), f"GPT-2 {size}"
    table = {"DART": "7", "E2E": "8", "WebNLG": "9"}[data]
    names = {
        "DART": {"chrF++": "chrfpp", "TER": "ter", "BERT-F1": "bert_f1"},
        "E2E": {"BLEU": "bleu", "NIST": "nist", "METEOR": "meteor", "ROUGE-L": "rouge_l"},
        "WebNLG": {"chrF++": "chrfpp", "TER": "ter", "BERT-F1": "bert_f1"},
    }[data]
    assert set(outcomes(document)) == set(ROWS)
    for name, row in ROWS.items():
        found = outcomes(document)[name]
        expected = {ours: paper(table, row, f"{own}/{theirs}") for theirs, ours in names.items()}
        assert values(found) == {"cider": paper("3", row, f"{own}/{data}"), **expected}
        assert found["count"] == 4
        assert {metric: m["direction"] for metric, m in found["metrics"].items() if m["direction"] == "lower"} == (
            {"ter": "lower"} if "ter" in expected else {}
        )
    ranks = document["stability"]["rank_correlation"]
    assert ranks == {"1": paper("2", f"{own}/{data}", "1-8"), "4": paper("2", f"{own}/{data}", "4-8"), "8": 1.0}
    assert table in document["provenance"]["tables"]
    assert {"2", "3"} <= set(document["provenance"]["tables"])


def test_gpt2_costs_are_those_that_the_text_states() -> None:
    for size in ("Medium", "Large"):
        low = outcomes(card(f"gpt2-{size.lower()}/webnlg"))["low"]["cost"]["over_high"]
        saved, lower, _ = TABLES["layer-card"]["tables"]["section 7"]["rows"][f"GPT-2 {size}"]
        assert low["training_seconds_ratio"] == pytest.approx(1 - saved / 100)
        assert low["peak_memory_ratio"] == pytest.approx(1 / lower, abs=5e-5)
    for data in ("dart", "e2e"):
        found = outcomes(card(f"gpt2-medium/{data}"))
        assert found["low"]["cost"]["over_high"]["training_seconds_ratio_range"] == [0.66, 0.70]
        assert found["low"]["cost"]["over_high"]["peak_memory_ratio_range"] == [0.44, 0.44]
        assert found["mid"]["cost"]["over_high"]["training_seconds_ratio_range"] == [0.91, 0.96]
        assert found["mid"]["cost"]["over_high"]["peak_memory_ratio_range"] == [0.82, 0.91]
        assert all(row["cost"] is None for row in outcomes(card(f"gpt2-large/{data}")).values())


@pytest.mark.parametrize("size", ["Medium", "Large"])
def test_the_tables_give_the_improvement_that_the_text_states(size: str) -> None:
    mid, bottom = (paper("3", row, f"GPT-2 {size}/WebNLG") for row in ("mid", "bottom"))
    stated = paper("section 7", f"GPT-2 {size}", "CIDEr of mid over bottom in percent")
    assert 100 * (mid / bottom - 1) == pytest.approx(stated, abs=0.5)


@pytest.mark.parametrize(("model", "data"), LLM)
def test_large_models(model: str, data: str) -> None:
    key = {"Llama-2-7B": "llama-2-7b-hf", "Qwen3-8B": "qwen3-8b"}[model]
    document, column = card(f"{key}/{data.lower()}"), f"{model}/{data}"
    found = outcomes(document)
    reached = {"high": "Top-5", "mid": "Mid-5", "low": "Bottom-5", "uniform": "Uniform-5", "all_layers": "All-layer"}
    assert {n: values(o) for n, o in found.items()} == {
        name: {"accuracy": paper("4", row, column)} for name, row in reached.items()
    }
    everything = paper("5", "All-layer", column)
    for name, row in {"high": "Top-5", "mid": "Mid-5", "low": "Last-5", "all_layers": "All-layer"}.items():
        cost = found[name]["cost"]
        assert cost["steps_per_second"] == paper("5", row, column)
        assert cost["step_seconds_ratio"] == pytest.approx(everything / paper("5", row, column), abs=5e-5)
    assert found["uniform"]["cost"] is None
    assert {name: outcome["count"] for name, outcome in found.items()} == {
        **dict.fromkeys(("high", "mid", "low", "uniform"), 5),
        "all_layers": document["model"]["num_layers"],
    }


@pytest.mark.parametrize("data", ["GSM8K", "HellaSwag", "SVAMP", "MathQA"])
def test_table_6_follows_from_tables_4_and_5_where_bottom_5_is_last_5(data: str) -> None:
    column = f"Qwen3-8B/{data}"
    for name, timed in (("Bottom-5", "Last-5"), ("Top-5", "Top-5")):
        speedup = 100 * (paper("5", timed, column) / paper("5", "All-layer", column) - 1)
        whole = paper("4", "All-layer", column)
        drop = 100 * (whole - paper("4", name, column)) / whole
        assert speedup == pytest.approx(paper("6", data, f"{name} speedup"), abs=0.03)
        assert drop == pytest.approx(paper("6", data, f"{name} drop"), abs=0.03)


@pytest.mark.parametrize(("model", "chosen"), GLUE)
def test_glue(model: str, chosen: tuple[int, ...]) -> None:
    document = card(f"{model.lower()}/glue")
    rows = {"all_layers": f"{model}/LoRA", **{f"activation_high_{k}": f"{model}/{k}" for k in chosen}}
    assert set(outcomes(document)) == set(rows)
    for name, row in rows.items():
        found = outcomes(document)[name]
        tasks = TABLES["act-lora"]["tables"]["3"]["columns"]
        pairs = {task.lower().replace("-", ""): act("3", row, task) for task in tasks}
        for metric, entry in found["metrics"].items():
            if metric != "glue_mean":
                task, kind = metric.rsplit("_", 1)
                assert [entry["value"], entry["spread"]] == pairs.pop(task)
                assert kind == {"cola": "matthews", "stsb": "pearson"}.get(task, "accuracy")
        assert not pairs
        mean = sum(act("3", row, task)[0] for task in tasks) / len(tasks)
        assert found["metrics"]["glue_mean"]["value"] == pytest.approx(mean, abs=5e-5)
        assert found["as_printed"] == {"glue_table_4": act("4", row, "GLUE"), "glue_table_5": act("5", row, "GLUE")}
        cost, whole = found["cost"], f"{model}/LoRA"
        assert cost["gpu_hours"] == act("4", row, "GPU hours")
        assert cost["gpu_hours_ratio"] == pytest.approx(1 - act("5", row, "GPU hours saved") / 100)
        assert cost["trainable_parameters"] == act("4", row, "trainable parameters")
        for ours, theirs in (("peak_memory_ratio", "memory GiB"), ("inference_latency_ratio", "latency ms")):
            assert cost[ours] == pytest.approx(act("4", row, theirs) / act("4", whole, theirs), abs=5e-5)
    tau = document["stability"]
    assert tau["kendall_tau_over_seeds"] == act("9", model, "activation norms")[0]
    assert tau["gradient_norms"] == act("9", model, "gradient norms")[0]


def test_gpu_hours_of_tables_4_and_5_agree_but_for_the_one_that_the_note_names() -> None:
    for model, chosen in GLUE:
        for k in chosen:
            own, whole = (act("4", f"{model}/{row}", "GPU hours") for row in (k, "LoRA"))
            apart = abs(100 * (1 - own / whole) - act("5", f"{model}/{k}", "GPU hours saved"))
            assert (apart > 20) == (k == 16), (model, k, apart)
    assert "contradicts for 16 layers of Llama-3.1-8B" in card("llama-3.1-8b/glue")["provenance"]["note"]


def test_sst2() -> None:
    found = outcomes(card("bert-base-uncased/sst2"))
    judged = {"all_layers": "LoRA", "activation_high_6": "6", "full_fine_tuning": "full fine-tuning"}
    for name, outcome in found.items():
        if name not in judged:
            assert outcome["metrics"] == {}
            continue
        (accuracy, spread), (loss, loss_spread) = act("6", judged[name], "accuracy"), act("6", judged[name], "loss")
        assert outcome["metrics"]["accuracy"] == {"value": accuracy, "spread": spread, "direction": "higher"}
        assert outcome["metrics"]["loss"]["value"] == pytest.approx(loss / 100)
        assert outcome["metrics"]["loss"]["spread"] == pytest.approx(loss_spread / 100)
        hours = act("6", judged[name], "GPU hours")
        assert outcome["cost"]["gpu_hours"] == hours
        assert outcome["cost"]["gpu_hours_ratio"] == pytest.approx(hours / act("6", "LoRA", "GPU hours"), abs=5e-5)
        assert outcome["cost"]["run_peak_memory_gib"] == act("6", judged[name], "memory GiB")
    for k in ("2", "4", "6", "8", "10", "12"):
        cost = found["all_layers" if k == "12" else f"activation_high_{k}"]["cost"]
        assert cost["step_seconds"] == pytest.approx(act("7", k, "total") / 1000)
        assert cost["step_seconds_ratio"] == pytest.approx(act("7", k, "total") / act("7", "12", "total"), abs=5e-5)
        memory = act("7", k, "peak MiB") / act("7", "12", "peak MiB")
        assert cost["peak_memory_ratio"] == pytest.approx(memory, abs=5e-5)


def test_the_parts_of_a_step_add_up() -> None:
    for k in TABLES["act-lora"]["tables"]["7"]["rows"]:
        parts = sum(act("7", k, part) for part in ("forward", "backward", "optimizer"))
        assert parts == pytest.approx(act("7", k, "total"), abs=0.015)


def test_each_card_names_its_tables_and_says_what_was_left_out() -> None:
    published = [json.loads(path.read_text(encoding="utf-8")) for path in Path(shipped_dir()).glob("*/*.json")]
    for document in (d for d in published if d["provenance"]["kind"] == "published"):
        source = document["provenance"]
        tables = TABLES[next(n for n, d in TABLES.items() if d["document"] == source["document"])]["tables"]
        assert set(source["tables"]) <= set(tables)
        assert "left out" in source["note"]
