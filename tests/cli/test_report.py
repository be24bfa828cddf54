from __future__ import annotations

import csv
import io
import json

import pytest

from command_line import Run, runner
from layercard.report.files import save_report
from reports import full_report, short_report


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd)


@pytest.fixture
def folder(tmp_path):
    save_report(full_report(), tmp_path / "out")
    save_report(short_report(), tmp_path / "other")
    return tmp_path


def test_report_writes_the_page_and_ends_with_what_it_means(run, folder):
    ran = run("report", folder / "out")
    assert ran.code == 0 and (folder / "out" / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert "1.94x as fast" in ran.words and "97% (92% to 99%)" in ran.words and "Wrote" in ran.words


def test_report_takes_a_file_an_output_and_other_runs(run, folder):
    page = folder / "deep" / "page.html"
    ran = run(
        "report", folder / "out" / "report.json", "-o", page, "--compare", folder / "other", "--compare", folder / "out"
    )
    assert ran.code == 0 and not (folder / "out" / "report.html").exists()
    assert 'id="compare"' in page.read_text()


def test_report_prints_markdown_and_writes_nothing(run, folder):
    ran = run("report", folder / "out", "--markdown", "--compare", folder / "other")
    assert ran.code == 0 and not (folder / "out" / "report.html").exists()
    assert "| placed | layers 15, 17" in ran.out and "**Quality:**" in ran.out and "| other |" in ran.out


def test_report_gives_json(run, folder):
    document = run("report", folder / "out", "--json").document
    assert document["verdict"]["speed"]["kind"] == "faster" and document["page"].endswith("report.html")


@pytest.mark.parametrize("command", ["report", "compare"])
def test_a_folder_without_a_report_is_one_clear_error(run, tmp_path, command):
    ran = run(command, tmp_path)
    assert ran.code == 1 and "holds no report.json" in ran.err and "Traceback" not in ran.err


def test_compare_prints_markdown_csv_and_json(run, folder):
    names = ("compare", folder / "out", folder / "other")
    text = run(*names)
    assert text.code == 0 and "| out | layers 15" in text.out and "Quality is unproven in other" in text.words
    rows = list(csv.DictReader(io.StringIO(run(*names, "--format", "csv").out)))
    assert [row["name"] for row in rows] == ["out", "other"]
    documents = [run(*names, *flags).document for flags in (("--format", "json"), ("--json",))]
    assert documents[0] == documents[1]
    assert documents[0]["runs"][0]["speedup_percent"] == pytest.approx(94)


def test_help_has_an_example(run):
    for command in ("report", "compare"):
        assert f"layercard {command} out" in run(command, "-h").words.partition("Example")[2]


def test_what_is_read_is_what_was_written(run, folder):
    before = json.loads((folder / "out" / "report.json").read_text())
    run("report", folder / "out")
    assert json.loads((folder / "out" / "report.json").read_text()) == before
