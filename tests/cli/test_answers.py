"""Every command ends with what its answer means and what to do next, in short sentences and tables that fit a terminal."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers as hf
import yaml

from brought import BASE, TEXT, made, save
from command_line import Ran, Run, questions, runner
from layercard import LayerPlacement, PlacementSettings
from layercard.cards.library import shipped_dir
from layercard.cli.next_steps import LONGEST, Training, sentences, training_lines
from reports import full_report

DEPTH = 8
KEY = "smollm2-135m-instruct/gsm8k"


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


def assert_readable(ran: Ran) -> None:
    """Sentences are under 100 letters but for paths; rows of tables, which hold columns of spaces, are under 81."""
    assert ran.code == 0, ran.err
    for line in ran.out.splitlines():
        if line.startswith("  "):
            continue  # commands and code to paste
        if re.search(r"\S {2,}\S", line):
            assert len(line) <= 80, line
        for sentence in re.split(r"(?<=[.!?]) (?=[A-Z`])", line):
            assert len(re.sub(r"\S*/\S*/\S*", "PATH", sentence)) < LONGEST, sentence


def following(ran: Ran) -> list[str]:
    """The commands and code below `Next:`."""
    after = ran.out.partition("\nNext: ")[2] or ran.out.partition("Next: ")[2]
    return [line.strip() for line in after.splitlines()[1:] if line.startswith("  ")]


def test_probe_names_the_plan_which_works_as_it_stands(run: Run, model: Path, data: Path, tmp_path: Path) -> None:
    ran = run("probe", model, "--dataset", data, "--column", "prompt=prompt", "--target-modules", "q_proj,v_proj")
    assert_readable(ran)
    assert "unproven" in ran.words
    (line,) = following(ran)
    words = shlex.split(line)
    assert words[:2] == ["layercard", "plan"]
    assert {"--column", "prompt=prompt", "--target-modules", "q_proj,v_proj", "--dataset", str(data)} <= set(words)
    assert words[-2:] == ["-o", "placement.json"]
    written = tmp_path / "placement.json"
    assert run(*words[1:-1], written, "--no-time-costs").code == 0
    assert LayerPlacement.load(written).strategy == "high"


def written(lines: list[str]) -> dict[str, Any]:
    """What each line to paste says of layers, read as its host reads it."""
    found = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines}
    values: dict[str, Any] = {"Python": eval(found["Python"].partition("lora_layers=")[2][:-1])}
    if "TRL" in found:
        words = shlex.split(found["TRL"])
        flags = dict(zip(words[-2::-2][::-1], words[::-2][::-1], strict=False))
        values["TRL"] = {n.removeprefix("--lora_layers_"): v for n, v in flags.items() if n.startswith("--lora_layers")}
        values["Axolotl"] = yaml.safe_load(found["Axolotl"])["lora_layers"]
    return values


@pytest.mark.parametrize("path", [None, Path("a folder/placement.json")])
@pytest.mark.parametrize("layers", [(3, 5, 7), (5,)])
@pytest.mark.parametrize("stack", [None, "language_model.layers"])
def test_the_lines_to_paste_say_the_plans_layers(path: Path | None, layers: tuple[int, ...], stack: str | None) -> None:
    placement = LayerPlacement(layers, DEPTH, "indices", None, "given")
    lines = [line.strip() for line in training_lines(placement, path, Training(layers_path=stack))]
    assert [line.split()[0] for line in lines] == ["TRL", "Axolotl", "Python"]
    said = written(lines)
    trl = said["TRL"]
    given = PlacementSettings.from_user(trl.pop("--lora_layers"), **trl)
    for settings in (given, *(PlacementSettings.from_user(said[host]) for host in ("Axolotl", "Python"))):
        assert settings.layers_path == stack
        if path is None:
            assert settings.indices == list(layers)
        else:
            assert settings.placement_path == path


def test_the_lines_of_a_schedule_of_every_layer_say_all() -> None:
    every = LayerPlacement(tuple(range(DEPTH)), DEPTH, "all", None, "given")
    lines = [line.strip() for line in training_lines(every, None, Training(schedule="0.25:0.33, 0.5:0.67"))]
    said = written(lines)
    trl = said["TRL"]
    for settings in (
        PlacementSettings.from_user(trl.pop("--lora_layers"), **trl),
        *(PlacementSettings.from_user(said[host]) for host in ("Axolotl", "Python")),
    ):
        assert (settings.strategy, settings.indices, settings.schedule) == ("all", None, "0.25:0.33, 0.5:0.67")


def test_plan_shows_them_and_a_quality_column(run: Run, model: Path, data: Path) -> None:
    ran = run("plan", model, "--no-time-costs")
    assert_readable(ran)
    layers = written(following(ran))
    assert layers["Python"] == layers["Axolotl"] == [3, 5, 7]
    assert "--lora_target_modules all-linear" in ran.out
    heading = next(line for line in ran.out.splitlines() if line.startswith("strategy"))
    assert heading.split()[-1] == "quality"
    rows = ran.out.splitlines()
    rows = rows[rows.index(heading) + 1 :][:7]
    assert {row.split()[-1] for row in rows} == {"unproven"}


def test_a_plan_of_every_layer_and_one_of_a_classifier_show_what_can_be_pasted(
    run: Run, model: Path, tmp_path: Path
) -> None:
    every = run("plan", model, "--lora-layers", "last", "--fraction", "1.0", "--no-time-costs")
    assert_readable(every)
    assert following(every) == []
    assert "as you would without layercard" in every.words
    bert = save(tmp_path / "bert", made(hf.AutoModelForSequenceClassification, hf.BertConfig(**BASE)))
    classifier = run("plan", bert, "--lora-layers", "last", "--no-time-costs")
    assert_readable(classifier)
    assert [line.split()[0] for line in following(classifier)] == ["Python"]


@pytest.mark.parametrize(
    "command",
    [["plugins"], ["cards", "list"], ["cards", "match", "MODEL", "DATA"], ["cards", "validate", "CARD"],
     ["cards", "add", "CARD"]],
    ids=" ".join,
)  # fmt: skip
def test_answers_end_with_what_to_do_next(run: Run, model: Path, data: Path, command: list[str]) -> None:
    card = shipped_dir() / f"{KEY}.json"
    given = [{"MODEL": model, "DATA": data, "CARD": card}.get(word, word) for word in command]
    ran = run(*given)
    assert_readable(ran)
    assert following(ran)


@pytest.mark.parametrize("command", [["show", KEY], ["diff", KEY, "smollm2-135m-instruct/e2e"]], ids=" ".join)
def test_whole_cards_end_so_too_in_tables_that_fit(run: Run, command: list[str]) -> None:
    ran = run("cards", *command)
    assert following(ran)
    lines = ran.out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(("What each set", "Fields that differ")))
    tables = [line for line in lines[start:] if re.search(r"\S {2,}\S", line) and not line.startswith("  ")]
    assert tables
    assert max(map(len, tables)) <= 80


def test_a_check_that_fails_says_what_to_do(run: Run, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "placement.json"
    LayerPlacement((1,), DEPTH, "indices", None, "given").save(path)
    ran = run("plan", model, "--no-time-costs", "--check", path)
    assert ran.code == 3
    assert "without `--check`" in ran.words


def test_compare_names_the_commands_that_show_more(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(full_report().to_dict()))
    ran = run("compare", path)
    assert ran.code == 0
    assert following(ran) == ["layercard report RUN", "layercard cards show CARD"]


def test_json_stays_one_line_on_standard_output(run: Run, model: Path) -> None:
    ran = run("plan", model, "--no-time-costs", "--json")
    assert json.loads(ran.out)["placement"]["layers"] == [3, 5, 7]
    assert "Next: " in ran.err


def test_standard_error_is_quiet_where_it_is_no_terminal(model: Path, data: Path) -> None:
    """Lines at growing intervals say what lasts; nothing is drawn over, so that a log stays readable."""
    command = [sys.executable, "-m", "layercard", "probe", str(model), "--dataset", str(data)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0
    assert "\r" not in done.stderr
    assert "\x1b" not in done.stderr + done.stdout
    assert "it/s" not in done.stderr


def test_statements_become_short_sentences() -> None:
    assert sentences("one; two (a; b)") == ["One.", "Two (a; b)."]
    assert sentences(f"{'x' * 90} (a reason that is long)") == ["X" + "x" * 89 + ".", "A reason that is long."]


def test_a_statement_with_brackets_inside_is_cut_before_the_last_one() -> None:
    """As `auto` says what Layer Cards led it to."""
    cards = "tiny/numbers: ρ 0.99, 0.94 given depth; tiny/words: ρ 0.97"
    kept = f"`uniform` kept 96% (95% at the least), {'x' * 60}, on the Layer Cards that match"
    assert sentences(f"{kept} ({cards})") == [f"{kept}.", f"{cards}."]
