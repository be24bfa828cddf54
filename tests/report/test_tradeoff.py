"""Speedup, performance drop and their ratio; the oracle is layer-card.txt's table 6, whose inputs the cards hold."""

from __future__ import annotations

import csv
import io

import pytest

from layercard.cards.library import shipped_dir
from layercard.cards.reading import read_card
from layercard.errors import LayercardError
from layercard.report.files import save_report
from layercard.report.tradeoff import as_csv, as_markdown, of_card, of_report, read_tradeoffs, tradeoff
from reports import full_report, short_report

TABLE_6 = {
    "gsm8k": {"low": (63.72, 12.93, 4.93), "high": (44.50, -7.76, None)},
    "hellaswag": {"low": (55.01, 16.77, 3.28), "high": (31.66, 11.10, 2.85)},
    "svamp": {"low": (59.77, 9.55, 6.26), "high": (41.87, 9.56, 4.38)},
    "mathqa": {"low": (74.74, 9.56, 7.82), "high": (38.49, 4.57, 8.43)},
}
"""Qwen3-8B: (speedup, performance drop, ratio), in percent, of Bottom-5 and Top-5."""


@pytest.mark.parametrize("dataset", TABLE_6)
def test_the_published_table_comes_out_of_the_cards_that_hold_its_inputs(dataset):
    rows = {row.name.split(": ")[1]: row for row in of_card(read_card(shipped_dir() / "qwen3-8b" / f"{dataset}.json"))}
    for name, (speedup, drop, ratio) in TABLE_6[dataset].items():
        row = rows[name]
        assert row.speedup_percent == pytest.approx(speedup, abs=0.05)
        assert row.performance_drop_percent == pytest.approx(drop, abs=0.02)
        assert row.ratio is None if ratio is None else row.ratio == pytest.approx(ratio, abs=0.02)
        assert row.of == "accuracy" and row.evidence == "published"
    assert rows["uniform"].speedup_percent is None and rows["uniform"].ratio is None


def test_measured_cards_count_the_gain_in_their_loss():
    card = read_card(shipped_dir() / "smollm2-135m-instruct" / "e2e.json")
    for row in of_card(card):
        share = card.share_kept(row.name.split(": ")[1])
        assert row.performance_drop_percent == pytest.approx((1 - share) * 100)
        assert row.evidence == "measured" and row.of.startswith("gain in")


def test_a_run_gives_its_step_speedup_and_the_share_that_it_loses():
    row = of_report("run", full_report())
    assert row.speedup_percent == pytest.approx(94) and row.performance_drop_percent == pytest.approx(3)
    assert row.ratio == pytest.approx(94 / 3) and row.evidence == "predicted" and row.heldout_loss == 2.711
    whole = of_report("all", full_report(layers=tuple(range(30)), step_speedup=None, interval=None))
    assert (whole.speedup_percent, whole.performance_drop_percent, whole.ratio) == (0, 0, None)
    unknown = of_report("short", short_report())
    assert unknown.speedup_percent is unknown.performance_drop_percent is unknown.ratio is None
    assert unknown.evidence == "unproven"


def test_a_schedule_is_told_from_all_layers_by_the_layers_that_learn_at_the_end():
    every = tuple(range(30))
    same = {"gradient_entry": {"moved": False}, "observed_step_seconds": None}
    parts = ((0, 100, every), (100, 400, every[15:]))
    phases = [{"begins": begins, "ends": ends, "layers": layers, **same} for begins, ends, layers in parts]
    row = of_report("rising", full_report(layers=every, schedule=phases))
    assert row.layers == "layers 0–29 of 0–29, at the end layers 15–29 of 0–29"
    assert of_report("all", full_report(layers=every, schedule=phases[:1])).layers == "layers 0–29 of 0–29"


def test_there_is_no_ratio_where_nothing_was_lost():
    assert tradeoff("a", "b", 1.5, 1.0, of="x", evidence="measured").ratio is None
    assert tradeoff("a", "b", 1.5, 1.1, of="x", evidence="measured").ratio is None


def test_folders_files_and_cards_are_read_and_anything_else_refused(tmp_path):
    save_report(full_report(), tmp_path / "one")
    save_report(short_report(), tmp_path / "two")
    card = shipped_dir() / "qwen3-8b" / "gsm8k.json"
    rows = read_tradeoffs([tmp_path / "one", tmp_path / "two" / "report.json", card])
    assert [row.name for row in rows][:2] == ["one", "two"] and len(rows) == 2 + 4
    (tmp_path / "bad.json").write_text("[1]")
    (tmp_path / "other.json").write_text('{"schema_version": 1}')
    for bad, said in (("bad.json", "JSON object"), ("other.json", "is no report"), ("nothing", "holds no report.json")):
        with pytest.raises(LayercardError, match=said):
            read_tradeoffs([tmp_path / bad])


def test_tables_hold_what_the_rows_do():
    rows = [of_report("a|b", full_report()), of_report("short", short_report())]
    text = as_markdown(rows)
    assert r"a\|b" in text and "94.00" in text and "unproven" in text
    assert len({line.replace(r"\|", "").count("|") for line in text.splitlines()}) == 1
    read = list(csv.DictReader(io.StringIO(as_csv(rows))))
    assert read[0]["name"] == "a|b" and float(read[0]["ratio"]) == pytest.approx(rows[0].ratio)
    assert read[1]["speedup_percent"] == ""
