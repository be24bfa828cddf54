"""The trainer's own trackers, real ones and offline: what they hold after a run."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from layercard.report.trackers import scalars, tell_trackers
from reports import full_report, short_report
from trainers import make_trainer, placed, train

LAYERS = (2, 3)
ALWAYS = {"layercard/adapted_layers", "layercard/overhead_seconds"}
"""What is known of every run."""


def test_scalars_are_what_the_report_says_and_nothing_unknown():
    found = scalars(full_report())
    assert found["layercard/step_speedup"] == 1.94 and found["layercard/share_kept"] == 0.97
    assert found["layercard/step_speedup_low"] == 1.9 and found["layercard/seconds_saved"] == 356.2
    assert set(scalars(short_report())) == ALWAYS
    assert all(isinstance(value, float) for value in found.values())


def test_a_share_that_only_a_layer_card_knows_is_no_number_of_this_run():
    assert "layercard/share_kept" not in scalars(full_report(quality={"kind": "unknown", "reason": "off"}))


def tracked(folder: Path, tracker: str) -> Any:
    """Train a placed run with one tracker on, and return the run."""
    trainer = make_trainer(folder, report_to=[tracker], run_name="one", project="layercard-test")
    run = placed(trainer, LAYERS)
    train(trainer)
    return run


def test_tensorboard_holds_the_scalars_and_the_report(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    reading = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tb"))
    run = tracked(tmp_path, "tensorboard")
    held = reading.EventAccumulator(str(tmp_path / "tb"))
    held.Reload()
    tags = held.Tags()
    assert set(tags["scalars"]) >= ALWAYS
    assert held.Scalars("layercard/adapted_layers")[-1].value == len(run.layers)
    steps = [event.step for event in held.Scalars("layercard/adapted_layers")]
    assert steps == [0, 4]  # when training begins, so that a killed run has them, and at its end
    assert "layercard/report/text_summary" in tags["tensors"]
    text = held.Tensors("layercard/report/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert "layers 2–3 of 0–3" in text and "Quality" in text


def test_wandb_offline_holds_the_scalars_and_the_page(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    tracked(tmp_path, "wandb")
    summary = dict(wandb.run.summary)
    wandb.finish()
    assert {name for name in summary if name.startswith("layercard/")} >= ALWAYS
    pages = list(tmp_path.rglob("*.html"))
    assert any("media" in page.parts and "layercard report" in page.read_text() for page in pages)


def test_trackio_holds_the_scalars_and_the_report(tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for name in [name for name in importlib.sys.modules if name.split(".")[0] == "trackio"]:
        monkeypatch.delitem(importlib.sys.modules, name)  # it reads the folder when it is imported
    tracked(tmp_path, "trackio")
    storage = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
    logs = storage.get_logs("layercard-test", "one")
    held = {name: value for entry in logs for name, value in entry.items()}
    assert set(held) >= ALWAYS
    assert "layers 2–3 of 0–3" in str(held["layercard/report"])


def test_a_tracker_that_fails_is_said_and_stops_nothing(tmp_path, caplog):
    from transformers.integrations.integration_utils import TensorBoardCallback

    class Broken(TensorBoardCallback):
        def __init__(self) -> None:
            self.tb_writer = None

        @property
        def tb_writer(self) -> Any:
            raise OSError("no network")

        @tb_writer.setter
        def tb_writer(self, value: Any) -> None:
            pass

    trainer = make_trainer(tmp_path)
    trainer.callback_handler.callbacks.append(Broken())
    tell_trackers(trainer, full_report(), "<html></html>")
    assert "Broken did not take the report: OSError: no network" in caplog.text


def test_trackers_that_layercard_does_not_know_by_name_get_the_scalars_at_the_end(tmp_path):
    from transformers.integrations.integration_utils import MLflowCallback

    class Kept(MLflowCallback):
        def __init__(self) -> None:
            self.logged: list[dict[str, float]] = []

        def on_log(self, args: Any, state: Any, control: Any, logs: Any, model: Any = None, **kwargs: Any) -> None:
            self.logged.append(logs)

        def __del__(self) -> None:
            pass

    trainer = make_trainer(tmp_path)
    kept = Kept()
    trainer.callback_handler.callbacks.append(kept)
    tell_trackers(trainer, full_report())
    tell_trackers(trainer, full_report(), "<html></html>")
    assert kept.logged == [scalars(full_report())]
