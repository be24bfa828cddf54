"""`layercard cards`: what its commands print, write and exit with, on libraries of a few cards."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from card_documents import measured, published
from command_line import Run, runner
from layercard.cards.card import LayerCard
from layercard.cards.library import save_card, shipped_dir
from layercard.cards.writing import card_text


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd, "cards")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own folder, empty."""
    folder = tmp_path / "own"
    monkeypatch.setenv("LAYERCARD_CARDS", str(folder))
    return folder


def put(folder: Path, document: dict[str, Any], name: str | None = None) -> Path:
    card = LayerCard(document, "test")
    path = folder / (name or f"{card.key}.json")
    save_card(card, path)
    return path


def test_list_shows_shipped_and_own_cards_with_the_best_and_its_cost(run: Run, own: Path) -> None:
    put(own, measured())
    put(own, published())
    ran = run("list", "--json")
    assert (ran.code, len(ran.out.splitlines())) == (0, 1)
    rows = {row["key"]: row for row in ran.document["cards"]}
    assert len(rows) == 2 + len(list(shipped_dir().glob("*/*.json")))
    best = rows["tiny/numbers"]["best"]
    assert (best["name"], best["layers"]) == ("mid", [2, 3])
    assert best["share_kept"] == pytest.approx(0.6 / 0.7)
    assert best["step_seconds_ratio"] == pytest.approx(2 / 3)
    assert rows["tiny/words"]["best"]["relative_to_all_layers"] == pytest.approx(0.96)
    text = run("list", "--model", "tiny").words
    assert "tiny/numbers 6 community mid 86% 1.50x" in text
    assert "tiny/words 6 published mid 96%* 1.33x" in text
    assert f"2 of {len(rows)} cards" in text


def test_list_filters(run: Run, own: Path) -> None:
    put(own, measured())
    put(own, published())

    def keys(*arguments: str) -> list[str]:
        return [row["key"] for row in run("list", *arguments, "--json").document["cards"]]

    assert keys("--model", "TINY", "--kind", "published") == ["tiny/words"]
    assert keys("--dataset", "numbers") == ["tiny/numbers"]
    assert keys("--model", "none of them") == []


def test_list_names_what_it_refused_and_shows_the_rest(run: Run, own: Path) -> None:
    put(own, measured())
    (own / "bad.json").write_text('{"schema_version": 2}')
    ran = run("list", "--model", "tiny", "--json")
    assert (ran.code, len(ran.document["cards"])) == (0, 1)
    (refused,) = ran.document["rejected"]
    assert refused["source"] == "user:bad.json"
    assert "Refused: user:bad.json: `schema_version` is 2" in " ".join(ran.err.split())


def test_show_says_everything_a_card_holds(run: Run, own: Path) -> None:
    put(own, measured())
    ran = run("show", "tiny/numbers")
    for part in (
        "org/tiny, 6 layers",
        "rank 8, alpha 16, q_proj, v_proj",
        "mid 2 1.4 86% 1.50x",
        "Kendall τ",
        "resnorm",
    ):
        assert part in ran.words
    rows = [line.split() for line in ran.out.splitlines() if line.split()[-1:] in (["high"], ["mid"], ["low"])]
    assert [row[-1] for row in rows] == ["high", "high", "mid", "mid", "low", "low"]
    document = run("show", "tiny/numbers", "--json").document
    assert document["card"] == measured()
    assert document["summary"]["best"]["name"] == "mid"


def test_show_reads_a_file_that_is_in_no_library(run: Run, own: Path, tmp_path: Path) -> None:
    path = put(tmp_path, published(), "elsewhere.json")
    ran = run("show", path)
    assert ran.code == 0
    assert "source a paper, tables 3" in ran.words


@pytest.mark.parametrize("command", ["show", "diff"])
def test_a_card_that_was_named_and_cannot_be_used_stops_the_command(run: Run, own: Path, command: str) -> None:
    put(own, measured())
    (own / "tiny" / "bad.json").write_text("{")
    more = ["tiny/numbers"] if command == "diff" else []
    ran = run(command, "tiny/bad", *more)
    assert ran.code == 1
    assert "Error: The Layer Card `tiny/bad` cannot be used: user:tiny/bad.json: it is not JSON" in ran.words
    unknown = run(command, "tiny/numbrs", *more)
    assert unknown.code == 1
    assert "Did you mean `tiny/numbers`?" in unknown.words


def test_validate_says_everything_that_is_wrong_and_exits_with_3(run: Run, tmp_path: Path) -> None:
    good, bad, broken = (tmp_path / f"{name}.json" for name in ("good", "bad", "broken"))
    good.write_text(card_text(measured()))
    bad.write_text(json.dumps(measured(license="MIT", status="trusted")))
    broken.write_text("[" * 100)
    assert run("validate", good).code == 0
    ran = run("validate", good, bad, broken, "--json")
    assert (ran.code, ran.document["valid"]) == (3, False)
    found = {Path(row["path"]).stem: row["problems"] for row in ran.document["files"]}
    assert found["good"] == []
    assert [line.split(":")[0] for line in found["bad"]] == ["`license`", "`status`"]
    assert found["broken"] == ["nested more than 16 deep. A Layer Card is nested about 6 deep."]
    assert "1 of 3 valid." in ran.words


def test_validate_checks_a_folder_as_a_library(run: Run, tmp_path: Path) -> None:
    put(tmp_path, measured())
    put(tmp_path, measured(dataset="others"), "tiny/misplaced.json")
    put(tmp_path, published(), "tiny/words.json")
    put(tmp_path, published(model="other/tiny"), "copy.json")
    ran = run("validate", tmp_path, "--json")
    found = {Path(row["path"]).stem: " ".join(row["problems"]) for row in ran.document["files"]}
    assert ran.code == 3
    assert found["numbers"] == ""
    assert "belongs at tiny/others.json" in found["misplaced"]
    assert "two cards for `tiny/words` that disagree" in found["words"]
    assert "two cards for `tiny/words` that disagree" in found["copy"]


def test_add_puts_a_card_into_the_users_library(run: Run, own: Path, tmp_path: Path) -> None:
    path = put(tmp_path, measured(later={"kept": True}), "new.json")
    ran = run("add", path, "--json")
    assert ran.code == 0, ran.err
    (row,) = ran.document["added"]
    assert (row["key"], Path(row["path"])) == ("tiny/numbers", own / "tiny" / "numbers.json")
    assert json.loads((own / "tiny" / "numbers.json").read_text()) == measured(later={"kept": True})
    assert run("show", "tiny/numbers").code == 0
    assert run("add", path).code == 0  # the same again


def test_add_refuses_another_card_of_the_same_name_unless_told(run: Run, own: Path, tmp_path: Path) -> None:
    put(own, measured())
    other = put(tmp_path, measured(later=1), "new.json")
    ran = run("add", other)
    assert ran.code == 1
    assert "your library has another card for `tiny/numbers`" in ran.words
    assert json.loads((own / "tiny" / "numbers.json").read_text()) == measured()
    assert run("add", other, "--replace").code == 0
    assert json.loads((own / "tiny" / "numbers.json").read_text()) == measured(later=1)


def test_add_takes_all_or_none(run: Run, own: Path, tmp_path: Path) -> None:
    good, bad = put(tmp_path, measured(), "good.json"), tmp_path / "bad.json"
    bad.write_text("{}")
    twin = put(tmp_path, measured(later=1), "twin.json")
    for second in (bad, twin):
        ran = run("add", good, second, "--replace")
        assert ran.code == 1
        assert second.name in ran.words
        assert not own.exists()


def test_add_refuses_to_disagree_with_a_shipped_card(run: Run, own: Path, tmp_path: Path) -> None:
    shipped = sorted(shipped_dir().glob("*/*.json"))[0]
    document = json.loads(shipped.read_text())
    assert run("add", shipped).code == 0
    ran = run("add", put(tmp_path, document | {"later": 1}, "mine.json"), "--replace")
    assert ran.code == 1
    assert "layercard:" in ran.words and "a key has one card" in ran.words


def test_add_refuses_where_the_card_already_lies_under_another_name(run: Run, own: Path, tmp_path: Path) -> None:
    put(own, measured(), "odd.json")
    ran = run("add", put(tmp_path, measured(later=1), "new.json"), "--replace")
    assert ran.code == 1
    assert "user:odd.json is another card for `tiny/numbers`" in ran.words


def test_diff_shows_fields_outcomes_and_the_order_of_layers(run: Run, own: Path, tmp_path: Path) -> None:
    put(own, measured())
    changed = measured(resnorm=(5.0, 6.0, 4.0, 3.5, 2.0, 1.0))
    changed["lora"]["rank"] = 4
    other = put(tmp_path, changed, "other.json")
    ran = run("diff", "tiny/numbers", other, "--json")
    assert ran.code == 0, ran.err
    document = ran.document
    assert document["same"] is False
    assert document["fields"] == [{"where": "lora.rank", "one": 8, "other": 4}]
    assert document["changed_layers"] == [0, 1]
    assert document["outcomes"] == []
    assert document["spearman"]["resnorm"] == pytest.approx(1 - 6 * 2 / (6 * 35))
    worse = put(tmp_path, measured(losses={"high": 1.6, "all_layers": 1.3, "untuned": 2.0}), "worse.json")
    rows = {row["where"]: row for row in run("diff", "tiny/numbers", worse, "--json").document["outcomes"]}
    assert rows["high.metrics.heldout_loss.value"]["other"] == 1.6
    assert rows["low"]["other"] is None
    same = run("diff", "tiny/numbers", own / "tiny" / "numbers.json")
    assert (same.code, "say the same" in same.words) == (0, True)


def test_diff_of_a_measured_and_a_published_card(run: Run, own: Path) -> None:
    put(own, measured())
    put(own, published())
    ran = run("diff", "tiny/numbers", "tiny/words")
    assert ran.code == 0
    assert "6 layers 0 layers" in ran.words


@pytest.mark.parametrize(
    "arguments", [["--help"], ["list", "--help"], ["show", "--help"], ["validate", "--help"], ["diff", "--help"]]
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from layercard.cli.main import main\n"
        f"code = main(['cards', *{arguments!r}])\n"
        "heavy = {'torch', 'transformers', 'peft', 'jsonschema', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [["show"], ["validate"], ["add"], ["diff", "one"], ["none"]])
def test_wrong_usage_exits_with_2(run: Run, arguments: list[str]) -> None:
    assert run(*arguments).code == 2


def test_text_of_a_card_is_shown_as_it_is(run: Run, own: Path, tmp_path: Path) -> None:
    document = published()
    document["provenance"]["note"] = "[bold]not markup[/bold]"
    put(own, document)
    assert "[bold]not markup[/bold]" in run("show", "tiny/words").words


def test_validate_of_a_folder_without_cards_fails(run: Run, tmp_path: Path) -> None:
    ran = run("validate", tmp_path)
    assert (ran.code, "holds no Layer Card" in ran.words) == (3, True)


def test_scores_are_not_broken_in_a_narrow_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    lines = run("show", "smollm2-135m-instruct/gsm8k").out.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("layer "))
    rows = [line.split() for line in lines[begin + 1 : begin + 31]]
    assert [row[0] for row in rows] == [str(layer) for layer in range(30)]
    assert {len(row) for row in rows} == {6}


def test_a_library_that_cannot_be_written_names_the_variable(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LAYERCARD_CARDS", str(tmp_path / "file" / "cards"))
    ran = run("add", shipped_dir() / "smollm2-135m-instruct" / "gsm8k.json")
    assert (ran.code, "`LAYERCARD_CARDS` names another folder" in ran.words) == (1, True)
