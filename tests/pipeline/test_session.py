"""A placed run inside real `transformers.Trainer`s: nothing that layercard measures may show in the training."""

import json
import logging

import pytest
import torch
from transformers import Trainer, TrainerCallback

from adapted import take_values
from layercard.errors import HostError, PlacementError
from layercard.pipeline.during.callback import InsideTraining
from layercard.report.files import load_report
from trainers import AtFirstStep, equal, logs, long_trainer, make_trainer, placed, train, trained

LAYERS = (2, 3)


class Metrics(Trainer):
    """Keeps metrics of its own, in every kind of attribute that a step could move."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.calls = 0
        self.history = {"train": [], "eval": []}
        self.total = torch.zeros(())

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        self.calls += 1
        self.history["train"].append(round(loss.item(), 6))
        self.total += loss.detach()
        self.state.num_input_tokens_seen += 0
        return (loss, outputs) if return_outputs else loss

    def log(self, values, *args, **kwargs):
        super().log({**values, "mine": sum(self.history["train"]), "calls": self.calls}, *args, **kwargs)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_training_is_that_of_a_run_that_does_not_measure_and_of_one_narrowed_by_hand(
    tmp_path, checkpointing, accumulation
):
    changes = {
        "kind": Metrics,
        "activation_checkpointing": checkpointing,
        "gradient_accumulation_steps": accumulation,
    }
    measured, silent = (long_trainer(tmp_path / name, **changes) for name in ("measured", "silent"))
    by_hand = long_trainer(tmp_path / "by_hand", layers=list(LAYERS), **changes)
    run = placed(measured, LAYERS, measure_budget=0.5)
    placed(silent, LAYERS, measure=False)
    take_values(by_hand.model, measured.model)
    for trainer in (measured, silent, by_hand):
        train(trainer)
    assert run.report.step_speedup is not None
    assert logs(measured) == logs(silent) == logs(by_hand)
    assert measured.state.num_input_tokens_seen == by_hand.state.num_input_tokens_seen > 0
    assert (measured.calls, measured.history) == (by_hand.calls, by_hand.history)
    assert equal(trained(measured.model), trained(silent.model))
    assert equal(trained(measured.model), trained(by_hand.model))


def test_before_the_first_step_everything_is_as_without_measuring(tmp_path):
    seen = []
    for measure in (True, False):
        trainer = long_trainer(tmp_path / str(measure), stop_after=1)
        placed(trainer, LAYERS, measure=measure, measure_budget=0.5)
        trainer.add_callback(watcher := AtFirstStep())
        train(trainer)
        seen.append(watcher.seen)
    first, second = seen
    assert equal(first.pop("values"), second.pop("values"))
    assert first == second
    assert first["gradients"] == []


def test_the_report_is_complete_and_every_null_explained(tmp_path, capsys):
    trainer = long_trainer(tmp_path, activation_checkpointing=True)
    run = placed(trainer, LAYERS, measure_budget=0.5)
    with pytest.raises(HostError, match="no report yet"):
        _ = run.report
    train(trainer)
    report = run.report
    assert load_report(tmp_path / "report.json") == report
    assert report.unexplained() == []
    assert set(report.unavailable) <= {"saving.prefix_cache", "break_even_steps", "phases"}
    assert not report.partial
    assert report.backward_layers == LAYERS
    assert report.interval[0] <= report.step_speedup <= report.interval[1]
    assert report.baseline.trainable_parameters == 2 * report.placed.trainable_parameters
    assert report.baseline.peak_bytes > report.placed.peak_bytes
    parts = report.saving.adapters + report.saving.backward
    assert 1 - parts == pytest.approx(1 / report.step_speedup)
    assert capsys.readouterr().out.count("[layercard] Adapted: layers 2–3 of 0–3.") == 1


def test_a_short_run_and_one_told_not_to_are_not_measured_and_say_so(tmp_path):
    for settings, reason in (({}, "too short"), ({"measure": False}, "`measure` is off")):
        trainer = make_trainer(tmp_path)
        run = placed(trainer, LAYERS, **settings)
        train(trainer)
        assert reason in run.report.unavailable["step_speedup"]
        assert run.report.unexplained() == []
        assert run.report.baseline.trainable_parameters == 2 * run.report.placed.trainable_parameters
        assert run.report.backward_layers == LAYERS


def test_all_layers_are_not_timed_against_themselves(tmp_path):
    trainer = long_trainer(tmp_path)
    run = placed(trainer, (0, 1, 2, 3), measure_budget=0.5)
    train(trainer)
    assert "Every layer is adapted" in run.report.unavailable["step_speedup"]


class Unaffordable(Trainer):
    """All-layer LoRA does not fit: the step asks for more memory than any machine has."""

    def training_step(self, model, *args, **kwargs):
        if any("layers.0." in name and p.requires_grad for name, p in model.named_parameters()):
            torch.empty(2**60)
        return super().training_step(model, *args, **kwargs)


def test_a_baseline_out_of_memory_is_said_and_training_goes_on(tmp_path):
    trainer = long_trainer(tmp_path, kind=Unaffordable)
    run = placed(trainer, LAYERS, measure_budget=0.5)
    train(trainer)
    assert trainer.state.global_step == 4
    assert "out of memory" in run.report.unavailable["step_speedup"]
    assert "out of memory" in run.report.unavailable["baseline.peak_bytes"]
    assert run.report.placed.peak_bytes is not None
    assert run.report.unexplained() == []


def test_without_the_gradient_entry_every_layer_runs_backward_and_the_report_says_why(tmp_path):
    trainer = make_trainer(tmp_path, activation_checkpointing=True)
    run = placed(trainer, LAYERS, gradient_entry=False)
    train(trainer)
    assert run.report.backward_layers == (0, 1, 2, 3)
    assert run.report.gradient_entry["obstacle"] == "`gradient_entry` is off."
    assert run.report.unavailable["saving.backward"] == "`gradient_entry` is off."


def test_without_the_gradient_entry_all_that_is_saved_is_the_adapters(tmp_path):
    trainer = long_trainer(tmp_path, stop_after=1)
    run = placed(trainer, LAYERS, gradient_entry=False, measure_budget=0.5)
    train(trainer)
    assert run.report.saving.adapters == pytest.approx(1 - 1 / run.report.step_speedup)
    assert run.report.unavailable["saving.backward"] == "`gradient_entry` is off."


def test_layers_below_the_entry_that_run_backward_are_warned_of_with_their_cause(tmp_path, caplog):
    trainer = make_trainer(tmp_path, max_steps=1)
    run = placed(trainer, LAYERS)

    class Reopen(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            run.close()  # somebody undoes the entry
            model.enable_input_require_grads()
            next(c for c in trainer.callback_handler.callbacks if isinstance(c, InsideTraining))._watch.__enter__()

    trainer.add_callback(Reopen)
    with caplog.at_level(logging.WARNING, logger="layercard"):
        train(trainer)
    assert "enable_input_require_grads" in caplog.text
    assert "layers 0–1 of 0–3 ran backward" in caplog.text


@pytest.mark.parametrize("above", ["keep", "off", "auto"])
def test_checkpointing_above_the_entry_changes_no_weight(tmp_path, above):
    plain, trainer = (
        long_trainer(tmp_path / n, activation_checkpointing=True, stop_after=2) for n in ("plain", "other")
    )
    placed(plain, LAYERS, measure=False)
    run = placed(trainer, LAYERS, measure_budget=0.5, checkpointing_above_entry=above)
    train(plain)
    train(trainer)
    assert equal(trained(plain.model), trained(trainer.model))
    chosen = run.report.gradient_entry["checkpointing_above"]
    assert chosen == above if above != "auto" else chosen in ("keep", "off")


def test_a_placement_that_was_widened_by_hand_does_not_train(tmp_path):
    trainer = make_trainer(tmp_path)
    run = placed(trainer, LAYERS)
    before = trained(trainer.model)
    run.narrowing.undo()
    with pytest.raises(PlacementError):
        train(trainer)
    run.narrowing._take_out()
    assert equal(trained(trainer.model), before)


class Fails(TrainerCallback):
    def __init__(self):
        self.armed = True

    def on_step_end(self, args, state, control, **kwargs):
        if self.armed:
            self.armed = False
            raise KeyError("a user's callback")


def test_after_an_exception_the_report_is_partial_and_training_again_is_unharmed(tmp_path):
    trainer = make_trainer(tmp_path / "placed", activation_checkpointing=True)
    by_hand = make_trainer(tmp_path / "hand", activation_checkpointing=True, layers=list(LAYERS))
    run = placed(trainer, LAYERS)
    take_values(by_hand.model, trainer.model)
    for each in (trainer, by_hand):
        each.add_callback(Fails())
        with pytest.raises(KeyError):
            train(each)
    assert json.loads((tmp_path / "placed" / "report.json").read_text())["partial"] is True
    for each in (trainer, by_hand):
        train(each)
    assert equal(trained(trainer.model), trained(by_hand.model))
    assert not run.report.partial


def test_after_training_and_after_close_no_hook_is_left(tmp_path):
    def hooks(model):
        return [(name, len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()]

    trainer = make_trainer(tmp_path)
    run = placed(trainer, LAYERS)
    found = hooks(trainer.model)
    train(trainer)
    assert hooks(trainer.model) == found
    trainer.add_callback(Fails())
    with pytest.raises(KeyError):
        train(trainer)
    run.close()
    assert hooks(trainer.model) == found


def test_an_encoder_classifier_is_measured_and_trained_as_by_hand(tmp_path):
    trainer, by_hand = (
        long_trainer(tmp_path / "placed", family="bert"),
        long_trainer(tmp_path / "hand", family="bert", layers=[2, 3]),
    )
    run = placed(trainer, LAYERS, measure_budget=0.5)
    take_values(by_hand.model, trainer.model)
    train(trainer)
    train(by_hand)
    assert run.report.step_speedup is not None
    assert logs(trainer) == logs(by_hand)
    assert equal(trained(trainer.model), trained(by_hand.model))


@pytest.mark.parametrize("measure", [True, False])
def test_an_adapter_built_on_the_chosen_layers_has_no_baseline(tmp_path, measure):
    trainer = long_trainer(tmp_path, layers=list(LAYERS))
    run = placed(trainer, LAYERS, measure_budget=0.5, measure=measure)
    train(trainer)
    report = run.report
    assert report.baseline.trainable_parameters is None
    assert report.placed.trainable_parameters == sum(p.numel() for p in trained(trainer.model).values())
    assert "built on the chosen layers alone" in report.unavailable["step_speedup"]
    assert report.unexplained() == []
