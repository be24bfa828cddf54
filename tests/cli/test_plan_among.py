"""`plan` chooses among the layers that will have adapters, and knows what will train below them."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers as hf

from command_line import Run, questions, runner
from shapes import HYBRIDS, seeded
from tiny import SMALL, tiny_tokenizer


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd)


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hybrid")
    seeded(HYBRIDS["lfm2"]).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def projecting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OPT with linear modules between its embeddings and its layers."""
    path = tmp_path_factory.mktemp("opt")
    sizes = SMALL | {"ffn_dim": 48, "word_embed_proj_dim": 16, "bos_token_id": 1, "eos_token_id": 2}
    seeded(lambda: hf.OPTForCausalLM(hf.OPTConfig(**sizes))).save_pretrained(path)
    return path


ATTENTION = ("--target-modules", "q_proj,v_proj")


@pytest.mark.parametrize("choice", ["auto", "uniform", "last", "random", "[3]"])
def test_a_plan_is_among_the_layers_that_hold_the_targets(run: Run, hybrid: Path, choice: str, tmp_path: Path) -> None:
    path = tmp_path / "placement.json"
    done = run("plan", hybrid, *ATTENTION, "--lora-layers", choice, "--no-time-costs", "--json", "-o", path)
    placement = done.document["placement"]
    assert placement["adaptable"] == [3, 7]
    assert placement["layers"] in ([3], [7])
    assert "1 of the 2 layers that have adapters, of 8" in placement["reason"]
    assert all(set(row["layers"]) <= {3, 7} for row in done.document["strategies"])
    again = run("plan", hybrid, *ATTENTION, "--lora-layers", choice, "--no-time-costs", "--check", path)
    assert again.code == 0


def test_scores_of_the_others_are_null(run: Run, hybrid: Path, tmp_path: Path) -> None:
    asked = (*ATTENTION, "--dataset", questions(tmp_path), "--json")
    planned = run("plan", hybrid, *asked, "--lora-layers", "high", "--no-time-costs").document
    probed = run("probe", hybrid, *asked, "--score", "resnorm", "--score", "activation").document
    for scores in (planned["scores"]["resnorm"], *probed["scores"].values()):
        for values in scores.values():
            assert [layer for layer, value in enumerate(values) if value is not None] == [3, 7]
    assert [layer for layer, value in enumerate(probed["activation_energy"]) if value is not None] == [3, 7]
    table = run("probe", hybrid, *asked[:-1]).out
    assert sum(line.split()[1:2] == ["–"] for line in table.splitlines()) == 6


def test_what_holds_no_target_is_one_error(run: Run, hybrid: Path) -> None:
    bare = run("plan", hybrid, *ATTENTION, "--lora-layers", "[1]")
    assert "layer 1 of 0–7, where the model has no adapters; it has them in layers 3, 7 of 0–7" in bare.words
    for choice in ("auto", "last", "high"):
        nothing = run("plan", hybrid, "--target-modules", "query", "--lora-layers", choice)
        assert nothing.code == 1
        assert "No target module named `query` was found" in nothing.words
        assert "`q_proj`" in nothing.words


def test_a_name_that_nothing_has_is_said(run: Run, hybrid: Path) -> None:
    done = run("plan", hybrid, "--target-modules", "q_proj,query", "--no-time-costs")
    assert "No module is named `query`. PEFT passes over such names" in done.words


def test_a_model_whose_layers_differ_is_timed_where_its_targets_are(run: Run, hybrid: Path) -> None:
    assert "Costs timed on 2 layers" in run("plan", hybrid, *ATTENTION).words


@pytest.mark.parametrize("checkpointing", ["--gradient-checkpointing", "--no-gradient-checkpointing"])
def test_targets_below_the_layers_are_said_and_predicted(run: Run, projecting: Path, checkpointing: str) -> None:
    """OPT's `project_in` is linear, so that adapters on every linear module train below all layers."""
    asked = ("plan", projecting, "--lora-layers", "last", "--no-time-costs", checkpointing)
    below, free = run(*asked), run(*asked, "--target-modules", "q_proj,v_proj")
    assert "Backpropagation will not end at layer 2" in below.words
    assert "project_" in below.words
    assert "Backpropagation will not end" not in free.words
    ratios = [run(*asked, *extra, "--json").document["expected"]["step_ratio"] for extra in ((), ATTENTION)]
    assert ratios[1] < ratios[0] < 1
