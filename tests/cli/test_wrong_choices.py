"""Typos in choices are found before a model is loaded: each is tried on a model whose weights cannot be read."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
import transformers as hf

from brought import TEXT, made, save
from command_line import Run, questions, runner
from layercard.cli.options import PARTS, TASKS
from layercard.cli.writable import refuse_unwritable
from layercard.data.forms import BESIDE, FORMS


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd)


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose configuration is whole and whose weights are no weights."""
    folder = save(tmp_path_factory.mktemp("broken"), made(hf.AutoModelForCausalLM, hf.LlamaConfig(**TEXT)))
    (folder / "model.safetensors").write_text("nothing")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return questions(tmp_path_factory.mktemp("data"))


WRONG = [
    (["--layers-path", "modle.layers"], "It has `model.layers`"),
    (["--target-modules", "q_prj"], "`q_prj`"),
    (["--device", "cudda"], "`device` is 'cudda'"),
    (["--column", "promt=prompt"], "Did you mean `prompt`?"),
    (["--column", "prompt"], "Write PART=NAME"),
    (["--task", "casual"], "'casual' is not one of"),
    (["--dtype", "float23"], "'float23' is not one of"),
    (["--probe-examples", "0"], "`probe_examples` is 0"),
]
OF_PLAN = [
    (["--lora-layers", "hgih"], "Did you mean `high`?"),
    (["--lora-layers", "{strategy:high}"], "begins like a mapping and is none"),
    (["--strategy", "lats"], "Did you mean `last`?"),
    (["--lora-layers", "high", "--score", "resnrom"], "Did you mean `resnorm`?"),
    (["--prefer", "sped"], "Did you mean `speed`?"),
    (["--lora-layers", "no/placement.json"], "no/placement.json does not exist"),
    (["--cards", "no/card"], "no Layer Card `no/card`"),
    (["--check", "no/placement.json"], "no/placement.json does not exist"),
]


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        *((["probe"], *case) for case in WRONG),
        (["probe"], ["--score", "resnrom"], "Did you mean `resnorm`?"),
        *((["plan", "--lora-layers", "high"], *case) for case in WRONG),
        *((["plan"], *case) for case in OF_PLAN),
        *((["cards", "build", "--heldout", "DATA", "--quick"], *case) for case in WRONG[2:7]),
        (["cards", "build", "--heldout", "DATA", "--quick"], ["--scores", "resnrom"], "Did you mean `resnorm`?"),
    ],
)
def test_a_wrong_choice_is_found_before_weights_are_read(
    run: Run, broken: Path, data: Path, tmp_path: Path, command: list[str], flags: list[str], message: str
) -> None:
    given = [str(data) if word == "DATA" else word for word in command]
    ran = run(*given, broken, "--dataset", data, *flags)
    assert ran.code in (1, 2)
    assert message in ran.words
    assert "weights" not in ran.words


@pytest.mark.parametrize("flags", [["--column", "promt=x"], ["--device", "cudda"], ["--cards", "no/card"]])
def test_cards_match_finds_them_where_no_card_could_speak(run: Run, broken: Path, data: Path, flags: list[str]) -> None:
    ran = run("cards", "match", broken, data, *flags)
    assert ran.code in (1, 2)
    assert flags[1].split("=")[0] in ran.words


def test_such_weights_are_an_error_where_choices_are_right(run: Run, broken: Path, data: Path) -> None:
    assert run("probe", broken, "--dataset", data).code == 1


def test_parts_and_tasks_are_those_of_the_data() -> None:
    known = {part for forms in FORMS.values() for form in forms for part in form}
    assert set(PARTS) == known | {part for parts in BESIDE.values() for part in parts}
    assert set(TASKS) == set(FORMS)


@pytest.mark.parametrize("name", ["reprot", "cards shwo"])
def test_a_wrong_command_names_the_nearest(run: Run, name: str) -> None:
    ran = run(*name.split())
    assert ran.code == 2
    assert "Did you mean" in ran.words


@pytest.mark.parametrize(
    ("command", "code", "told"),
    [
        ("probe", 2, "MODEL"),
        ("probe model", 2, "--dataset"),
        ("plan ./nowhere", 1, "./nowhere does not exist"),
        ("report nowhere", 1, "nowhere"),
        ("compare nowhere", 1, "nowhere"),
        ("plugins --jsno", 2, "--json"),
        ("cards list --kind mesured", 2, "'mesured' is not one of"),
        ("cards show no/card", 1, "no Layer Card `no/card`"),
        ("cards diff no/card no/other", 1, "no Layer Card `no/card`"),
        ("cards add nowhere.json", 1, "nowhere.json"),
        ("cards validate nowhere.json", 3, "nowhere.json: not valid"),
        ("cards match ./nowhere data.jsonl", 1, "./nowhere does not exist"),
        ("cards build ./nowhere --dataset data.jsonl", 1, "./nowhere does not exist"),
        ("demo --steps 1", 2, "--steps"),
    ],
)
def test_a_wrong_input_of_each_command_is_one_clear_error(run: Run, command: str, code: int, told: str) -> None:
    ran = run(*command.split())
    assert ran.code == code
    assert told in ran.words
    assert "Traceback" not in ran.err
    assert "`layercard --debug" not in ran.err


@pytest.mark.parametrize(
    "command",
    ["plan {model} -o", "cards match {model} {data} -o", "cards build {model} --dataset {data} --heldout {data} -o",
     "cards build {model} --dataset {data} --heldout {data} --work"],
)  # fmt: skip
def test_a_file_that_cannot_be_written_is_refused_before_the_work(
    run: Run, broken: Path, data: Path, tmp_path: Path, command: str
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    ran = run(*command.format(model=broken, data=data).split(), file / "out.json")
    assert (ran.code, "no file can be written in" in ran.words) == (2, True)
    assert "layercard-tmp" not in ran.err
    assert file.read_text() == "" and list(tmp_path.iterdir()) == [file]


def test_a_report_that_cannot_be_written_is_one_clear_error(run: Run, tmp_path: Path) -> None:
    refuse_unwritable(tmp_path / "new" / "report.html", "--output")
    refuse_unwritable(tmp_path, "--work")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(click.UsageError, match="no file can be written in"):
        refuse_unwritable(tmp_path / "file" / "report.html", "--output")


def test_match_refuses_a_file_that_is_not_there_whether_or_not_a_card_reads_it(run: Run, broken: Path) -> None:
    ran = run("cards", "match", broken, "nowhere.jsonl")
    assert (ran.code, "nowhere.jsonl does not exist" in ran.words) == (1, True)


def test_an_empty_name_is_told(run: Run, broken: Path) -> None:
    assert "The model's name is empty." in run("plan", "").words
    ran = run("plan", broken, "--target-modules", " , ")
    assert (ran.code, "`--target-modules` names none." in ran.words) == (2, True)
