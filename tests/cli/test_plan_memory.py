"""`plan` says what memory every strategy takes, and whether it fits, from a configuration alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from command_line import Run, runner
from tiny import tiny_model, tiny_tokenizer


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A folder that holds a configuration and no weights."""
    tiny_model("llama", num_layers=6, vocab_size=2000).config.save_pretrained(tmp_path)
    return tmp_path


def planned(run: Run, config: Path, *flags: object) -> dict[str, Any]:
    asked = ("plan", config, "--lora-layers", "last", "--num-layers", 2, "--no-time-costs", "--max-length", 32)
    ran = run(*asked, *flags, "--json")
    assert ran.code == 0, ran.err
    return ran.document


def peaks(document: dict[str, Any]) -> dict[str, int]:
    return {row["strategy"]: row["peak_bytes"] for row in document["strategies"]}


def test_every_strategy_has_a_peak_below_that_of_all_layers(run: Run, config: Path) -> None:
    document = planned(run, config)
    every = document["memory"]["all_layers"]["peak_bytes"]
    found = peaks(document)
    assert {"planned", "first", "middle", "last", "uniform", "random"} <= set(found)
    assert found["planned"] == found["last"] <= found["middle"] <= found["first"]
    assert all(peak < every for peak in found.values())
    assert document["memory"]["kind"] == "predicted" and document["memory"]["reason"] is None
    assert all(row["fits"] is None and row["would_fit"] == [] for row in document["strategies"])


def test_the_parts_of_a_peak_are_its_sum(run: Run, config: Path) -> None:
    for row in (document := planned(run, config))["strategies"]:
        assert sum(row["peak_parts"].values()) == row["peak_bytes"]
    model = tiny_model("llama", num_layers=6, vocab_size=2000)
    weights = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    assert document["memory"]["all_layers"]["peak_parts"]["weights"] == weights


def test_what_the_run_does_changes_the_peak(run: Run, config: Path) -> None:
    usual = peaks(planned(run, config))["planned"]
    for flags in (("--batch-size", 2), ("--load-in-4bit",), ("--optimizer", "sgd"), ("--lora-rank", 4)):
        assert peaks(planned(run, config, *flags))["planned"] < usual
    for flags in (("--no-gradient-checkpointing",), ("--batch-size", 64)):
        assert peaks(planned(run, config, *flags))["first"] > peaks(planned(run, config))["first"]


def test_a_device_that_is_large_fits_and_a_small_one_says_what_would(run: Run, config: Path) -> None:
    large = planned(run, config, "--memory", "24GiB")
    assert large["memory"]["device_bytes"] == 24 * 2**30
    assert {row["fits"] for row in large["strategies"]} == {"yes"}
    small = planned(
        run, config, "--memory", "2 MB", "--batch-size", 64, "--no-gradient-checkpointing", "--loss-head", "whole"
    )
    assert {row["fits"] for row in small["strategies"]} == {"no"}
    for row in (*small["strategies"], small["memory"]["all_layers"]):
        for way in row["would_fit"]:
            assert way["peak"] <= 0.9 * 2_000_000 < row["peak_bytes"]


def test_advice_that_is_followed_gives_the_peak_that_was_promised(run: Run, config: Path) -> None:
    whole = ("--loss-head", "whole", "--batch-size", 64)
    before = planned(run, config, *whole)
    size = f"{int(peaks(before)['planned'] * 0.8)}B"
    ways = {
        way["change"]: way["peak"]
        for way in planned(run, config, *whole, "--memory", size)["strategies"][0]["would_fit"]
    }
    name, peak = next((change, peak) for change, peak in ways.items() if change.startswith("batch size"))
    followed = planned(run, config, "--loss-head", "whole", "--batch-size", name.split()[-1], "--memory", size)
    assert (peaks(followed)["planned"], followed["strategies"][0]["fits"]) == (peak, "yes")


def test_weights_that_were_saved_packed_are_counted_packed_or_not_at_all(run: Run, config: Path) -> None:
    usual = peaks(planned(run, config, "--load-in-4bit"))
    saved = json.loads((config / "config.json").read_text())
    for quantization in ({"quant_method": "bitsandbytes", "load_in_4bit": True}, {"quant_method": "gptq", "bits": 4}):
        (config / "config.json").write_text(json.dumps(saved | {"quantization_config": quantization}))
        document = planned(run, config)
        assert (document["memory"]["weights"], peaks(document)) == ("4-bit", usual)
    (config / "config.json").write_text(json.dumps(saved | {"quantization_config": {"quant_method": "mxfp4"}}))
    assert "packed by `mxfp4`" in planned(run, config)["memory"]["reason"]


def test_people_read_that_it_is_a_prediction_in_80_columns(run: Run, config: Path) -> None:
    asked = ("plan", config, "--lora-layers", "uniform", "--num-layers", 3, "--no-time-costs", "--memory", "24GiB")
    ran = run(*asked, "--max-length", 32)
    table = ran.out[
        ran.out.index("Predicted: how fast a step is") : ran.out.index("Predicted peak memory, not measured")
    ]
    assert all(len(line) <= 80 for line in table.splitlines())
    assert "peak memory" in table and "fits" in table
    told = ran.out[ran.out.index("Predicted peak memory, not measured") :].splitlines()
    assert all(len(line) < 100 for line in told)
    for part in (
        "8 rows of 32 tokens",
        "The plan fits into 24.00 GiB",
        "All-layer LoRA fits into",
        "Not counted: the device",
    ):
        assert part in ran.words


def test_a_model_that_cannot_be_traced_is_planned_with_the_reason(run: Run, tmp_path: Path) -> None:
    tiny_model("deberta").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    asked = ("plan", tmp_path, "--lora-layers", "last", "--num-layers", 2, "--no-time-costs", "--memory", "24GiB")
    ran = run(*asked, "--json")
    assert ran.code == 0, ran.err
    assert "cannot be predicted" in ran.document["memory"]["reason"]
    assert {row["peak_bytes"] for row in ran.document["strategies"]} == {None}
    assert "Peak memory: The memory of DebertaV2" in ran.words


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--memory", "24"), "'24' is no size"),
        (("--memory", "big"), "such as `24GiB`"),
        (("--load-in-4bit", "--load-in-8bit"), "Give one"),
    ],
)
def test_bad_flags_are_refused_in_a_sentence(run: Run, config: Path, flags: tuple[str, ...], message: str) -> None:
    ran = run("plan", config, *flags)
    assert ran.code == 2
    assert message in ran.words
