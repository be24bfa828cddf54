"""`place` with the prefix cache: same weights, its saving measured, its use told, refused with a reason."""

import logging

import pytest

from layercard import place
from trainers import LONG, StopAfter, make_trainer, train, trained


def apart(found, expected):
    assert found.keys() == expected.keys()
    return max(float((found[n] - w).norm() / w.norm()) for n, w in expected.items())


def run(folder, **settings):
    trainer = make_trainer(folder, max_steps=60, activation_checkpointing=True)
    placed = place(trainer, lora_layers=[2, 3], **settings)
    train(trainer)
    return trained(trainer.model), placed.report


def test_weights_are_those_without_the_cache_and_the_report_tells_its_use(tmp_path, caplog):
    expected, without = run(tmp_path / "without", measure=False)
    with caplog.at_level(logging.WARNING, "layercard"):
        found, report = run(tmp_path / "with", measure=False, prefix_cache="1MiB")
    assert apart(found, expected) < 1e-4
    use = report.prefix_cache
    assert (use["on"], use["off"], use["bypassed"]) == (True, None, {})
    assert use["misses"] == 40  # the data set
    assert use["hits"] == 120 - 40
    assert use["bytes_in_memory"] > 0
    assert use["projected_bytes"] == pytest.approx(use["bytes_in_memory"], rel=0.3)
    assert "needs about" in caplog.text
    assert report.backward_layers == (2, 3)
    assert report.unexplained() == []
    assert without.prefix_cache == {"on": False, "obstacle": "`prefix_cache` is off."}
    assert not list((tmp_path / "with").glob("prefix_cache*"))


def test_the_saving_of_the_cache_is_measured(tmp_path, capsys):
    trainer = make_trainer(tmp_path, max_steps=LONG)
    trainer.add_callback(StopAfter(30))
    placed = place(trainer, lora_layers=[2, 3], prefix_cache="on", measure_budget=0.5)
    train(trainer)
    report = placed.report
    assert report.unexplained() == []
    assert "saving.prefix_cache" not in report.unavailable
    saving, cached = report.saving, report.prefix_cache["step_speedup"]
    assert saving.adapters + saving.backward + saving.prefix_cache == pytest.approx(1 - 1 / cached)
    assert "prefix cached" in capsys.readouterr().out


def test_measuring_with_the_cache_leaves_no_trace_in_the_training(tmp_path):
    weights = []
    for measure in (True, False):
        trainer = make_trainer(tmp_path / str(measure), max_steps=LONG)
        trainer.add_callback(StopAfter(30))
        place(trainer, lora_layers=[2, 3], prefix_cache="on", measure=measure, measure_budget=0.5)
        train(trainer)
        weights.append(trained(trainer.model))
    assert apart(*weights) < 1e-4


def test_where_it_cannot_be_the_run_says_why_and_trains(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "layercard"):
        trainer = make_trainer(tmp_path)
        placed = place(trainer, lora_layers=[0, 2], prefix_cache="on", measure=False)
        train(trainer)
    assert placed.report.prefix_cache == {"on": False, "obstacle": "Layer 0 is adapted, so there is no prefix."}
    assert "no prefix" in placed.report.unavailable["saving.prefix_cache"]
    assert caplog.text.count("The prefix is not cached") == 1


def test_dropout_below_the_entry_is_refused_and_named(tmp_path):
    trainer = make_trainer(tmp_path, family="bert")
    placed = place(trainer, lora_layers=[2, 3], prefix_cache="on", measure=False)
    train(trainer)
    assert "Dropout is active below the entry" in placed.report.prefix_cache["obstacle"]
