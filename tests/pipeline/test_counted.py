"""What a report sums its seconds over: the steps and micro-batches that a training ran, cached ones by what the cache did."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

import layercard
from adapted import lora_config, with_adapters
from layercard.pipeline.before.probe_budget import planned_examples
from layercard.report.files import load_report
from layercard.report.page.render import html
from tiny import collate, tiny_examples, tiny_model
from trainers import LONG, Rows, StopAfter, arguments, make_trainer, train

MEASURED: dict[str, Any] = {"guard": False, "measure_budget": 0.5}


class Counted(Trainer):
    """Counts the micro-batches of the training alone."""

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        found = super().get_batch_samples(*args, **kwargs)
        self.micro_batches = vars(self).get("micro_batches", 0) + len(found[0])
        return found


class Stream(torch.utils.data.IterableDataset):
    """A stream that begins anew each time; torch gives it a `__getitem__` that raises."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __iter__(self) -> Any:
        return iter(self.rows)


class LongStream(Stream):
    """One that tells its length, as many do."""

    def __len__(self) -> int:
        return len(self.rows)


def evaluated(folder: Path, eval_dataset: Any, **changes: Any) -> Any:
    return Trainer(
        model=with_adapters(tiny_model("llama"), lora_config("llama")),
        args=arguments(folder, eval_strategy="steps", eval_steps=2, **changes),
        train_dataset=Rows(tiny_examples(40)),
        eval_dataset=eval_dataset,
        data_collator=collate,
    )


def summed(report: Any, micro_batches: int) -> float:
    """Seconds saved over so many micro-batches, without a cache."""
    saved: float = report.baseline.step_seconds - report.placed.step_seconds
    return saved * micro_batches - report.probe_seconds - report.overhead_seconds


def test_an_accumulation_that_the_epoch_cuts_short_counts_what_it_ran(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, kind=Counted, max_steps=-1, num_train_epochs=400, per_device_train_batch_size=8,
        gradient_accumulation_steps=64,
    )  # fmt: skip
    trainer.add_callback(StopAfter(20))
    report = layercard.place(trainer, lora_layers=[2, 3], **MEASURED)
    train(trainer)
    report = report.report
    assert trainer.micro_batches == 20 * 5 == report.micro_batches
    assert report.seconds_saved == pytest.approx(summed(report, 100))
    assert report.end_to_end_speedup == pytest.approx(
        100 * report.baseline.step_seconds / (100 * report.baseline.step_seconds - report.seconds_saved)
    )


def test_timing_keeps_to_the_micro_batches_that_there_are(tmp_path: Path) -> None:
    """Ten epochs of five micro-batches are fifty, not 640 by the accumulation steps: 2% of them pay for no timing."""
    trainer = make_trainer(
        tmp_path, max_steps=-1, num_train_epochs=10, per_device_train_batch_size=8, gradient_accumulation_steps=64
    )
    run = layercard.place(trainer, lora_layers=[2, 3])
    train(trainer)
    assert "of its 50 planned" in run.report.unavailable["step_speedup"]


def test_a_run_that_stops_early_saved_what_it_ran(tmp_path: Path) -> None:
    trainer = evaluated(
        tmp_path, Rows(tiny_examples(8)), max_steps=LONG, save_strategy="steps", save_steps=2, learning_rate=1.0,
        load_best_model_at_end=True,
    )  # fmt: skip
    trainer.add_callback(EarlyStoppingCallback(1))
    run = layercard.place(trainer, lora_layers=[2, 3], **MEASURED)
    train(trainer)
    report, ran = load_report(tmp_path / "report.json"), trainer.state.global_step
    assert ran < LONG
    assert (report.planned_steps, report.steps_run, report.micro_batches) == (LONG, ran, ran)
    assert report.seconds_saved == pytest.approx(summed(report, ran))
    assert f"Seconds of both runs over {ran} steps of {LONG:,} planned" in html(report)
    assert run.report == report


def test_a_run_without_a_step_saved_nothing(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=LONG, per_device_train_batch_size=64, dataloader_drop_last=True)
    run = layercard.place(trainer, lora_layers=[2, 3], **MEASURED)
    train(trainer)
    report = run.report
    assert (trainer.state.global_step, report.steps_run, report.micro_batches) == (0, 0, 0)
    assert report.seconds_saved == pytest.approx(-report.overhead_seconds)
    assert report.end_to_end_speedup is None and report.unexplained() == []
    html(report)


@pytest.mark.parametrize("kind", [Stream, LongStream])
def test_streams_are_cached_as_often_as_their_rows_come_back(tmp_path: Path, kind: Any) -> None:
    trainer = make_trainer(tmp_path, max_steps=LONG)
    trainer.train_dataset = kind(tiny_examples(60))
    trainer.add_callback(StopAfter(40))
    run = layercard.place(trainer, lora_layers=[2, 3], prefix_cache="on", **MEASURED)
    train(trainer)
    report, use = run.report, run.report.prefix_cache
    assert use["hits"] + use["misses"] == 40 * 2
    assert use["misses"] <= 60
    cached = use["hits"] / 2
    placed, faster = report.placed.step_seconds, report.baseline.step_seconds / use["step_speedup"]
    took = (40 - cached) * placed + cached * faster + report.overhead_seconds
    assert report.end_to_end_speedup == pytest.approx(40 * report.baseline.step_seconds / took)


def test_a_stream_with_a_length_is_placed_and_judged(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=LONG)
    trainer.train_dataset = LongStream(tiny_examples(60))
    trainer.add_callback(StopAfter(2))
    assert planned_examples(trainer) == LONG * 2
    run = layercard.place(trainer, lora_layers="high", probe_examples=8, guard_budget=0.5)
    train(trainer)
    assert run.report.quality["examples"] >= 8


@pytest.mark.parametrize("best", [False, True])
def test_of_several_eval_sets_the_first_ones_loss_is_told_and_of_the_model_that_stays(
    tmp_path: Path, best: bool
) -> None:
    sets = {"first": Rows(tiny_examples(8)), "second": Rows(tiny_examples(8, seed=5))}
    trainer = evaluated(
        tmp_path, sets, max_steps=8, learning_rate=1.0, save_strategy="steps", save_steps=2, load_best_model_at_end=best,
        metric_for_best_model="eval_second_loss",
    )  # fmt: skip
    run = layercard.place(trainer, lora_layers=[2, 3], guard=False, measure=False)
    train(trainer)
    by_step = {
        entry["step"]: entry["eval_first_loss"] for entry in trainer.state.log_history if "eval_first_loss" in entry
    }
    step = trainer.state.best_global_step if best else 8
    assert step != 8 or not best
    assert run.report.quality["final_heldout_loss"] == by_step[step]
    now = trainer.evaluate(sets["first"])["eval_loss"]
    assert run.report.quality["final_heldout_loss"] == pytest.approx(now)


class Small(Trainer):
    """A device that holds two rows."""

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if len(inputs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().training_step(model, inputs, *args, **kwargs)


def test_a_batch_size_that_was_found_is_told(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, kind=Small, max_steps=4, per_device_train_batch_size=8, auto_find_batch_size=True)
    run = layercard.place(trainer, lora_layers=[2, 3], guard=False, measure=False)
    train(trainer)
    assert run.report.run["training"]["micro_batch_rows"] == 2


class Beginnings(TrainerCallback):
    """Counts how often a training begins."""

    seen = 0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.seen += 1


def test_what_was_spent_before_the_batch_size_was_found_is_counted(tmp_path: Path, monkeypatch: Any) -> None:
    """Each attempt begins anew, and by this clock each beginning takes a second."""
    from layercard.pipeline.during import callback

    clock = count()
    monkeypatch.setattr(callback, "time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    trainer = make_trainer(tmp_path, kind=Small, max_steps=1, per_device_train_batch_size=8, auto_find_batch_size=True)
    trainer.add_callback(beginnings := Beginnings())
    run = layercard.place(trainer, lora_layers=[2, 3], guard=False, measure=False)
    train(trainer)
    assert run.report.overhead_seconds == beginnings.seen > 1
