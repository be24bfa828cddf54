import io
import json
import logging

import pytest
from rich.console import Console

from layercard.cost.speedup import SpeedupReport, StepCost
from layercard.errors import LayercardError
from layercard.report.console import show
from layercard.report.files import load_report, save_report
from layercard.report.lines import prefix_log

REPORT = SpeedupReport(
    layers=(3, *range(15, 30)),
    num_layers=30,
    step_speedup=2.5,
    interval=(2.4, 2.6),
    baseline=StepCost(2.5, 2**31, 100_000, 0.1),
    placed=StepCost(1.0, 2**30, 30_000, 0.1),
    end_to_end_speedup=2.2,
    planned_steps=400,
    steps_run=400,
    micro_batches=400,
    break_even_steps=12,
    seconds_saved=300.0,
    observed_step_seconds=1.1,
)


def _shown(report):
    console = Console(file=io.StringIO(), width=160, color_system=None)
    show(report, console)
    return console.file.getvalue()


def test_speedup_and_quality_stand_in_the_same_row():
    row = next(line for line in _shown(REPORT).splitlines() if "placed" in line and "1.00 GiB" in line)
    assert all(cell in row for cell in ("unproven", "2.50x", "30,000"))
    assert "Adapted: layers 3, 15–29 of 0–29." in _shown(REPORT)


def test_costs_and_break_even_are_said():
    text = _shown(REPORT)
    assert all(said in text for said in ("Over 400 planned steps", "2.20x as fast", "after 12 steps", "2.40x to 2.60x"))


@pytest.mark.parametrize("width", [80, 120])
def test_every_line_has_the_prefix_and_the_table_fits(width):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    show(REPORT, console)
    lines = console.file.getvalue().splitlines()
    assert lines and all(line.startswith("[layercard] ") for line in lines)
    start = next(i for i, line in enumerate(lines) if "quality" in line and "speed" in line)
    assert max(map(len, lines[start:])) <= width
    assert not any("all-layer" in line and "reference" not in line for line in lines[start:])


def test_what_is_logged_has_the_prefix_once(caplog):
    prefix_log()
    prefix_log()
    logging.getLogger("layercard").warning("said %s", "so")
    assert [record.getMessage() for record in caplog.records] == ["[layercard] said so"]


def test_what_was_not_measured_is_said_with_its_reason():
    text = _shown(SpeedupReport(layers=(1,), num_layers=2, unavailable={"step_speedup": "the run is too short"}))
    assert "not measured" in text and "the run is too short" in text


def test_reports_are_read_back_and_bad_files_refused(tmp_path):
    path = save_report(REPORT, tmp_path / "new")
    assert path.name == "report.json"
    assert load_report(path) == REPORT
    assert [p.name for p in path.parent.iterdir()] == ["report.json"]
    path.write_text("{half")
    with pytest.raises(LayercardError, match=r"cannot be read as a report"):
        load_report(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("quality", None), ("run", None), ("step_speedup", "fast"), ("layers", None), ("layers", [99]), ("timing", [1])],
)
def test_an_edited_report_names_the_wrong_value(tmp_path, name, value):
    path = save_report(REPORT, tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(LayercardError, match=rf"is no report of layercard \(TypeError: `{name}` is"):
        load_report(path)
