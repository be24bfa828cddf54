"""The guard inside real trainers: what it finds, what it does about it, and that the run is as if it had not looked."""

import json
import logging

import pytest
import torch
from transformers import Trainer, TrainerState

from adapted import take_values
from guarded import ALL_THAT_COUNTS, RIGHT, WRONG, guarded_trainer, loss_of_a_real_run
from layercard.errors import EXIT_QUALITY, QualityError
from layercard.pipeline.during.entry import EntryChoice
from layercard.pipeline.during.trial_choice import choose_trial
from layercard.quality.verdict import KEYS
from layercard.report.files import load_report
from trainers import AtFirstStep, Rows, equal, logs, placed, train, trained

LONG = {"guard_budget": 0.15, "measure": False}


def test_a_right_placement_passes(tmp_path, capsys):
    trainer = guarded_trainer(tmp_path, lora={"lora_dropout": 0.0})
    run = placed(trainer, RIGHT, guard=True, **LONG)
    train(trainer)
    quality = run.report.quality
    assert set(quality) == set(KEYS)
    assert quality["kind"] == "predicted"
    assert quality["share_in_trial"] == pytest.approx(1.0, abs=1e-3)
    assert quality["reaction"] == "none"
    assert quality["heldout_from"] == "eval_dataset"
    assert quality["learning_rate_hint"]["better"] in (1.0, 2.0)
    assert load_report(tmp_path / "report.json").quality == quality
    assert "kept 100% of all-layer LoRA's gain" in " ".join(capsys.readouterr().err.split())
    assert "gain in held-out loss kept, predicted from a trial" in str(run.report)


def test_a_wrong_placement_is_warned_of_and_trains(tmp_path, caplog):
    trainer = guarded_trainer(tmp_path)
    run = placed(trainer, WRONG, guard=True, **LONG)
    with caplog.at_level(logging.WARNING, logger="layercard"):
        train(trainer)
    assert run.report.quality["share_in_trial"] == pytest.approx(0.0, abs=1e-3)
    assert run.report.quality["share_kept"] < 0.1
    assert run.report.quality["reaction"] == "warned"
    assert "layers 0–1 of 0–3 promised to keep" in caplog.text
    assert trainer.state.global_step == 2


def test_a_wrong_placement_is_stopped_before_any_step(tmp_path):
    trainer = guarded_trainer(tmp_path)
    run = placed(trainer, WRONG, guard=True, on_quality_loss="stop", **LONG)
    before = trained(trainer.model)
    with pytest.raises(QualityError, match=r"`quality_threshold` is 90%.*on_quality_loss"):
        train(trainer)
    assert QualityError.exit_code == EXIT_QUALITY == 4
    assert trainer.state.global_step == 0
    assert equal(before, trained(trainer.model))
    assert load_report(tmp_path / "report.json").quality["reaction"] == "stopped"
    assert run.report.partial


@pytest.mark.parametrize("changes", [{"gradient_accumulation_steps": 2}, {"activation_checkpointing": True}])
def test_all_layers_instead_train_as_without_layercard(tmp_path, changes):
    trainer = guarded_trainer(tmp_path / "guarded", stop_after=4, **changes)
    plain = guarded_trainer(tmp_path / "plain", stop_after=4, **changes)
    run = placed(trainer, WRONG, guard=True, on_quality_loss="all_layers", guard_budget=0.15)
    for each in (trainer, plain):
        train(each)
    assert equal(trained(trainer.model), trained(plain.model))
    assert logs(trainer) == logs(plain)
    assert run.layers == (0, 1, 2, 3)
    assert run.report.quality["reaction"] == "all_layers"
    assert run.report.quality["tried"][0]["layers"] == [0, 1]
    assert "Every layer is adapted" in run.report.unavailable["step_speedup"]
    assert run.report.unexplained() == []
    assert len(trainer.accelerator._optimizers) == 1
    saved = json.loads((tmp_path / "guarded" / "placement.json").read_text())
    assert (saved["layers"], saved["strategy"]) == ([0, 1, 2, 3], "guard")
    trainer.save_model(tmp_path / "adapter")
    plain.save_model(tmp_path / "other")
    config, other = (json.loads((tmp_path / n / "adapter_config.json").read_text()) for n in ("adapter", "other"))
    config["target_modules"], other["target_modules"] = (
        sorted(config["target_modules"]),
        sorted(other["target_modules"]),
    )
    assert config == other


def test_widening_tries_again_and_trains_as_narrowed_by_hand(tmp_path):
    trainer = guarded_trainer(tmp_path / "guarded")
    source = guarded_trainer(tmp_path / "source")
    run = placed(trainer, WRONG, guard=True, on_quality_loss="widen", **LONG)
    train(trainer)
    tried = [tuple(entry["layers"]) for entry in run.report.quality["tried"]]
    assert tried[:2] == [(0, 1), (0, 1, 3)]
    assert run.layers[:3] == (0, 1, 3)[: len(run.layers)] or run.layers == (0, 1, 2, 3)
    assert run.report.quality["reaction"] == "widened"
    shares = [entry["share_kept"] for entry in run.report.quality["tried"]]
    assert shares == sorted(shares)
    by_hand = guarded_trainer(tmp_path / "hand", layers=list(run.layers))
    take_values(by_hand.model, source.model)
    train(by_hand)
    assert equal(trained(trainer.model), trained(by_hand.model))


def test_a_widening_without_budget_to_try_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("layercard.pipeline.during.trial_choice.RETRIES", 0)
    trainer = guarded_trainer(tmp_path, stop_after=1)
    run = placed(trainer, WRONG, guard=True, on_quality_loss="widen", **LONG)
    train(trainer)
    assert run.layers == (0, 1, 3)
    assert run.report.quality["kind"] == "unknown"
    assert "no second trial" in run.report.quality["reason"]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_run_is_bit_for_bit_that_without_a_guard(tmp_path, checkpointing):
    seen, runs = [], []
    for guard in (True, False):
        trainer = guarded_trainer(
            tmp_path / str(guard), activation_checkpointing=checkpointing, gradient_accumulation_steps=2
        )
        run = placed(trainer, RIGHT, guard=guard, measure=guard, guard_budget=0.15)
        trainer.add_callback(watcher := AtFirstStep())
        train(trainer)
        seen.append(watcher.seen)
        runs.append((run, trained(trainer.model), logs(trainer), trainer.model.state_dict()))
    (guarded, values, log, state), (_, other, other_log, other_state) = runs
    assert guarded.report.quality["share_in_trial"] > 0.5
    assert guarded.report.step_speedup is not None
    assert guarded.report.pairs >= 3
    assert equal(values, other)
    assert log == other_log
    assert equal(state, other_state)
    first, second = seen
    assert equal(first.pop("values"), second.pop("values"))
    assert first == second


def test_an_arm_is_what_the_trainer_itself_would_have_trained(tmp_path):
    """Against a real trainer on the same rows in the same order: accumulation, clipping, weight decay, token counts."""
    trainer = guarded_trainer(tmp_path / "guarded", **ALL_THAT_COUNTS)
    run = placed(trainer, RIGHT, guard=True, guard_budget=0.15)
    train(trainer)
    quality = run.report.quality
    for name, layers in (("all_layers", None), ("placed", list(RIGHT))):
        real = loss_of_a_real_run(tmp_path / name, trainer, quality, layers=layers)
        assert quality["heldout_loss"][name] == pytest.approx(real, abs=1e-5)
    assert quality["heldout_loss"]["before"] - quality["heldout_loss"]["all_layers"] > 0.01


def test_without_an_eval_set_the_training_set_judges_and_its_rows_are_not_trained_on(tmp_path):
    trainer = guarded_trainer(tmp_path, held_out=False)
    run = placed(trainer, RIGHT, guard=True, **LONG)
    train(trainer)
    assert run.report.quality["heldout_from"] == "training set"
    assert run.report.quality["examples"] == 16


def _reason(trainer, **settings):
    run = placed(trainer, RIGHT, **{"guard": True, **LONG, **settings})
    train(trainer)
    assert run.report.quality["kind"] == "unknown"
    assert run.report.quality["share_kept"] is None
    assert run.report.quality["reaction"] == "none"
    return run.report.quality["reason"]


def test_runs_that_cannot_be_tried_say_why(tmp_path):
    few = guarded_trainer(tmp_path, held_out=False)
    few.train_dataset = Rows(few.train_dataset.rows[:20])
    assert "5 held-out examples (training set)" in _reason(few)
    given = guarded_trainer(tmp_path)
    given.eval_dataset = Rows(given.eval_dataset.rows[:1])
    assert "There is 1 held-out example (eval_dataset)" in (reason := _reason(given))
    assert "give the trainer" not in reason, "it has one"
    assert "too short to try" in _reason(guarded_trainer(tmp_path, max_steps=10), guard_budget=0.03)
    assert "guard` is off" in _reason(guarded_trainer(tmp_path), guard=False)
    assert "did not lower" in _reason(guarded_trainer(tmp_path, learning_rate=0.0))


class Unaffordable(Trainer):
    """All-layer LoRA does not fit: the step asks for more memory than any machine has."""

    def training_step(self, model, *args, **kwargs):
        if any("layers.0." in name and p.requires_grad for name, p in model.named_parameters()):
            torch.empty(2**60)
        return super().training_step(model, *args, **kwargs)


@pytest.mark.parametrize("measure", [True, False])
def test_all_layers_that_do_not_fit_leave_quality_unknown_and_the_run_goes_on(tmp_path, measure):
    trainer = guarded_trainer(tmp_path, kind=Unaffordable)
    assert "ran out of memory" in _reason(trainer, measure=measure)
    assert trainer.state.global_step == 2


def test_sharded_runs_and_training_sets_read_once_are_not_tried(tmp_path):
    trainer = guarded_trainer(tmp_path)
    run = placed(trainer, RIGHT, guard=True, **LONG)
    entries = EntryChoice(run.host.model, run.stack, run.placement, run.settings, trainer.args)
    state = TrainerState(max_steps=400)
    assert choose_trial(run, state, entries, prefix_cached=False)[0] is not None
    iterator = iter(trainer.train_dataset.rows)
    trainer.train_dataset = type("Once", (torch.utils.data.IterableDataset,), {"__iter__": lambda self: iterator})()
    assert "only once" in choose_trial(run, state, entries, prefix_cached=False)[1]["reason"]
    trainer.is_fsdp_enabled = True
    assert "FSDP shards" in choose_trial(run, state, entries, prefix_cached=False)[1]["reason"]


def test_a_second_training_and_a_resumed_one_are_not_tried_again(tmp_path):
    trainer = guarded_trainer(tmp_path, save_strategy="steps", save_steps=1)
    run = placed(trainer, RIGHT, guard=True, **LONG)
    train(trainer)
    found = run.report.quality["share_kept"]
    train(trainer)
    assert run.report.quality["share_kept"] == found
    resumed = guarded_trainer(tmp_path, stop_after=3)
    again = placed(resumed, RIGHT, guard=True, **LONG)
    train(resumed, resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert again.report.quality["share_kept"] == found
    assert "before it was resumed" in again.report.quality["reason"]
    (tmp_path / "report.json").unlink()
    alone = guarded_trainer(tmp_path, stop_after=3)
    last = placed(alone, RIGHT, guard=True, **LONG)
    train(alone, resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert last.report.quality["kind"] == "unknown"
    assert "resumed" in last.report.quality["reason"]


def test_the_trainers_own_last_evaluation_is_told(tmp_path):
    trainer = guarded_trainer(tmp_path, stop_after=3, eval_strategy="steps", eval_steps=2)
    run = placed(trainer, RIGHT)
    train(trainer)
    evaluated = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert run.report.quality["final_heldout_loss"] == evaluated[-1]
    assert "at the end" in str(run.report)
