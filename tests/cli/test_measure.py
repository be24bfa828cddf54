"""`layercard measure` through the real command: what it measures agrees with adapters made by hand, and what it says follows."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from brought import BASE, TEXT, made, save
from command_line import Ran, Run, questions, runner
from layercard import LayerPlacement
from layercard.cli.next_steps import LONGEST
from layercard.cost.memory import peak_bytes

DEPTH = 6
QUICK = ("--rounds", "6", "--batch-size", "2", "--max-length", "32")
TARGETS = ["q_proj", "v_proj"]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    return runner(capfd)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = hf.LlamaConfig(**{**TEXT, "num_hidden_layers": DEPTH})
    return save(tmp_path_factory.mktemp("m"), made(hf.AutoModelForCausalLM, config))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return questions(tmp_path_factory.mktemp("d"))


def by_name(ran: Ran) -> dict[str, dict[str, Any]]:
    assert ran.code == 0, ran.err
    return {found["name"]: found for found in ran.document["runs"]}


def saved_by_hand(model: Path, folder: Path, layers: list[int] | None) -> tuple[int, int]:
    """Return numbers and bytes of the adapter that PEFT saves for `layers_to_transform`."""
    base = hf.AutoModelForCausalLM.from_pretrained(model)
    config = LoraConfig(r=4, target_modules=TARGETS, layers_to_transform=layers, task_type="CAUSAL_LM")
    get_peft_model(base, config).save_pretrained(folder)
    tensors = load_file(folder / "adapter_model.safetensors").values()
    return sum(t.numel() for t in tensors), sum(t.nbytes for t in tensors)


@pytest.mark.parametrize("checkpointing", [True, False])
def test_lists_strategies_and_files_are_measured_beside_all_layers(
    run: Run, model: Path, data: Path, tmp_path: Path, checkpointing: bool
) -> None:
    chosen = run("plan", model, "--lora-layers", "[3,5]", "--no-time-costs", "-o", tmp_path / "placement.json")
    assert chosen.code == 0
    flag = "--gradient-checkpointing" if checkpointing else "--no-gradient-checkpointing"
    ran = run(
        "measure", model, "--dataset", data, *QUICK, flag, "--target-modules", ",".join(TARGETS), "--rank", "4",
        "--layers", tmp_path / "placement.json", "--layers", "0,1", "--layers", "high", "--sweep", "1,2", "--json",
    )  # fmt: skip
    runs = by_name(ran)
    layers = {name: found["layers"] for name, found in runs.items()}
    assert list(layers) == ["all layers", "placement.json", "list", "high", "last 1", "last 2"]
    assert layers["placement.json"] == [3, 5] and layers["list"] == [0, 1] and layers["last 2"] == [4, 5]
    for name, found in runs.items():
        by_hand = saved_by_hand(model, tmp_path / f"by hand {name}", layers[name])
        assert (found["adapter_parameters"], found["adapter_bytes"]) == by_hand
        assert len(found["seconds"]) == 6 and set(found["phases"]) == {"forward", "backward", "optimizer"}
        assert min(*found["seconds"], *found["phases"].values(), found["tokens_per_second"]) > 0
    assert runs["last 1"]["peak_bytes"] < runs["last 2"]["peak_bytes"] < runs["all layers"]["peak_bytes"]
    assert runs["placement.json"]["gradient_entry"] == 3 and runs["placement.json"]["gradient_entry_obstacle"] is None
    assert ran.document["gradient_checkpointing"] is checkpointing
    assert "optimizer state included" in ran.document["memory_method"]


def test_peak_memory_is_that_of_two_steps_by_hand_and_holds_the_optimizers_state(
    run: Run, model: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"text": f"row {i} of one length"}) for i in range(4)))
    flags = ("--rank", "64", "--target-modules", ",".join(TARGETS), "--no-gradient-checkpointing", "--json")
    ran = run("measure", model, "--dataset", rows, "--rounds", "6", "--batch-size", "4", "--layers", "[5]", *flags)
    base = hf.AutoModelForCausalLM.from_pretrained(model)
    config = LoraConfig(r=64, target_modules=TARGETS, layers_to_transform=[5], task_type="CAUSAL_LM")
    by_hand = get_peft_model(base, config).train()
    (tokens,) = set(ran.document["batch_tokens"])
    ids = torch.randint(3, 100, (4, tokens // 4))
    optimizer = torch.optim.AdamW([p for p in by_hand.parameters() if p.requires_grad], fused=True)

    def steps() -> None:
        for _ in range(2):
            by_hand(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    found = by_name(ran)["list"]
    assert found["peak_bytes"] == pytest.approx(peak_bytes(steps, by_hand, torch.device("cpu")), rel=0.02)
    assert 2 * found["adapter_bytes"] > 0.04 * found["peak_bytes"]  # without the state it would have been noticed


def test_what_it_says_is_what_it_measured(run: Run, model: Path, data: Path) -> None:
    ran = run("measure", model, "--dataset", data, *QUICK, "--sweep", "1,3", "--layers", "4,5", "--json")
    for found in by_name(ran).values():
        if found["name"] == "all layers":
            assert found["speedup"] is None and found["quality"] == "reference"
            continue
        ratio = found["speedup"]
        low, high = ratio["interval"]
        pairs = sorted(a / b for a, b in zip(by_name(ran)["all layers"]["seconds"], found["seconds"], strict=True))
        assert (low, high) == (pytest.approx(pairs[0]), pytest.approx(pairs[-1]))
        assert ratio["value"] == pytest.approx((pairs[2] * pairs[3]) ** 0.5)
        assert (ratio["verdict"] == "too noisy to tell") is (low <= 1 <= high)
        assert found["quality"] == "unproven"
        assert ("too noisy to tell whether" in ran.err) or ratio["verdict"] != "too noisy to tell"


def test_it_reads_well_and_names_a_next_command_that_works(run: Run, model: Path, data: Path, tmp_path: Path) -> None:
    ran = run("measure", model, "--dataset", data, *QUICK, "--sweep", "1,2", "--inference", "--new-tokens", "3")
    assert ran.code == 0, ran.err
    for line in ran.out.splitlines():
        if line.startswith("  "):
            continue
        if re.search(r"\S {2,}\S", line):
            assert len(line) <= 80, line
        for sentence in re.split(r"(?<=[.!?]) (?=[A-Z`])", line):
            assert len(re.sub(r"\S*/\S*/\S*", "PATH", sentence)) < LONGEST, sentence
    for words in ("unproven", "Serving engines", "with gradient checkpointing", "tokens/s after it"):
        assert words in ran.words
    (line,) = [line for line in ran.out.splitlines() if line.startswith("  layercard")]
    name, *words = shlex.split(line)
    assert name == "layercard" and words[0] in ("plan", "measure")
    if words[0] == "plan":
        words = [str(tmp_path / "placement.json") if word == "placement.json" else word for word in words]
        assert run(*words, "--no-time-costs").code == 0
        assert LayerPlacement.load(tmp_path / "placement.json").layers[-1] == DEPTH - 1


def test_the_same_layers_are_measured_once_and_all_layers_are_there_already(run: Run, model: Path, data: Path) -> None:
    ran = run("measure", model, "--dataset", data, *QUICK, "--layers", "4,5", "--sweep", f"2,{DEPTH}", "--json")
    assert list(by_name(ran)) == ["all layers", "list"]
    assert "last 2 holds the layers of list" in ran.words
    assert f"last {DEPTH} holds every layer" in ran.words


def test_a_classifier_trains_its_head_in_every_run(run: Run, tmp_path: Path) -> None:
    folder = save(tmp_path / "m", made(hf.AutoModel, hf.BertConfig(**{**BASE, "num_hidden_layers": 3})))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"text": f"row {i}", "label": i % 2}) for i in range(12)))
    runs = by_name(run("measure", folder, "--dataset", rows, *QUICK, "--layers", "[2]", "--rank", "4", "--json"))
    head = 32 * 2 + 2
    whole, last = runs["all layers"]["adapter_parameters"], runs["list"]["adapter_parameters"]
    assert (whole - head) == 3 * (last - head)
    ran = run("measure", folder, "--dataset", rows, "--layers", "[2]", "--inference")
    assert ran.code == 2 and "`--inference` times causal language models" in ran.words


def test_too_few_rows_make_a_smaller_batch_which_is_said(run: Run, model: Path, data: Path) -> None:
    ran = run("measure", model, "--dataset", data, "--rounds", "6", "--batch-size", "64", "--layers", "[5]")
    assert ran.code == 0
    assert "The dataset has 12 usable rows, so a step has 12, not 64." in ran.words
    assert "A batch has 12 rows" in ran.words


WRONG = [
    ([], "Say what to measure"),
    (["--layers", "hgih"], "Did you mean `high`?"),
    (["--layers", "7"], "the bare number 7"),
    (["--layers", "[0,9]"], "layers 0–5"),
    (["--layers", "no/placement.json"], "no/placement.json does not exist"),
    (["--layers", "{strategy: budget, budget: 0.5}"], "layercard plan"),
    (["--layers", "{indices: [0], layers_path: model.layers}"], "Give `--layers-path`"),
    (["--layers", "{strategy: last, schedule: rising}"], "`schedule: rising`, which is not measured"),
    (["--layers", "{strategy: last, gradient_entry: false}"], "`gradient_entry: False`, which is not measured"),
    (["--layers", "{strategy: last, prefix_cache: on}"], "`prefix_cache: on`, which is not measured"),
    (["--layers", "{strategy: last, checkpointing_above_entry: off}"], "which is not measured"),
    (["--layers", "high", "--strategy", "last"], "`--strategy` is that of `--sweep`"),
    (["--sweep", "2", "--strategy", "lats"], "Did you mean `last`?"),
    (["--sweep", "9"], "the model has 6"),
    (["--sweep", "0"], "`num_layers` is 0"),
    (["--sweep", "two"], "not a list of whole numbers"),
    (["--sweep", "2", "--rounds", "5"], "x>=6"),
    (["--sweep", "2", "--device", "cudda"], "`device` is 'cudda'"),
    (["--sweep", "2", "--target-modules", "q_prj"], "`q_prj`"),
    (["--sweep", "2", "--column", "prompt=nothing"], "nothing"),
]


@pytest.mark.parametrize(
    ("flags", "message"), WRONG, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_a_wrong_choice_is_found_before_weights_are_read(
    run: Run, model: Path, data: Path, tmp_path: Path, flags: list[str], message: str
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in model.iterdir():
        (broken / file.name).write_bytes(b"nothing" if file.suffix == ".safetensors" else file.read_bytes())
    ran = run("measure", broken, "--dataset", data, *flags)
    assert ran.code in (1, 2)
    assert message in ran.words
    assert "weights" not in ran.words


def test_a_narrow_terminal_keeps_the_names_of_the_runs(
    run: Run, monkeypatch: pytest.MonkeyPatch, model: Path, data: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    ran = run("measure", model, "--dataset", data, "--sweep", "2", *QUICK, "--inference", "--new-tokens", "2")
    assert ran.code == 0
    assert max(len(line) for line in ran.out.split("Answers")[0].splitlines()[1:4]) <= 60
    answers = ran.out.split("Answers, one prompt")[1].split("Serving engines")[0]
    assert "last 2" in answers
