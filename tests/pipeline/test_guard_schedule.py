"""The guard's trial of a schedule: its arm is what freezing by hand trains, nothing acts on it, and no trace is left."""

import copy
import json

import pytest
from transformers import Trainer

from guarded import ALL_THAT_COUNTS, guarded_trainer, loss_of_a_real_run
from layercard.quality.verdict import KEYS
from layercard.report.files import load_report
from trainers import AtFirstStep, FreezeBelow, equal, logs, placed, train

EVERY = (0, 1, 2, 3)
LONG = {"guard": True, "guard_budget": 0.15, "measure": False}


class AtItsBeginning(AtFirstStep):
    """Notes what the optimizer and scheduler hold before the first step too, and which parameters learn."""

    def on_step_begin(self, args, state, control, model=None, optimizer=None, lr_scheduler=None, **kwargs):
        if not hasattr(self, "seen"):
            super().on_step_begin(args, state, control, model=model, **kwargs)
            self.seen["learning"] = [name for name, p in model.named_parameters() if p.requires_grad]
            self.seen["optimizer"] = copy.deepcopy(optimizer.state_dict())
            self.seen["scheduler"] = lr_scheduler.state_dict()
            self.seen["tensors"] = [len(group["params"]) for group in optimizer.param_groups]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_run_is_bit_for_bit_that_without_a_guard(tmp_path, checkpointing):
    """A whole run with two rises: what training sees before its first step, and all that comes of it."""
    found = []
    for guard in (True, False):
        trainer = guarded_trainer(
            tmp_path / str(guard),
            max_steps=48,
            stop_after=48,
            activation_checkpointing=checkpointing,
            gradient_accumulation_steps=2,
        )
        budget = {"guard": guard, "guard_budget": 0.5, "measure": guard, "measure_budget": 0.5}
        run = placed(trainer, EVERY, schedule="0.25:0.5, 0.5:0.75", **budget)
        trainer.add_callback(watcher := AtItsBeginning())
        train(trainer)
        found.append((run.report, watcher.seen, logs(trainer), trainer.model.state_dict(), trainer.optimizer))
    (guarded, seen, log, state, optimizer), (silent, other_seen, other_log, other_state, other_optimizer) = found
    assert guarded.quality["kind"] == "tried"
    assert [part["begins"] for part in guarded.schedule] == [0, 12, 24]
    assert silent.quality["reason"] == "`guard` is off."
    assert equal(state, other_state)
    assert log == other_log
    held, other_held = (each.state_dict()["state"] for each in (optimizer, other_optimizer))
    assert held.keys() == other_held.keys()
    assert all(equal(held[number], other_held[number]) for number in held)
    assert equal(seen.pop("values"), other_seen.pop("values"))
    assert seen == other_seen


@pytest.mark.parametrize(
    ("schedule", "frozen"), [("0.25:0.75", {0.25: 3}), ("0.25:0.5, 0.5:0.75", {0.25: 2, 0.5: 3})], ids=["one", "two"]
)
def test_its_arm_is_what_the_trainer_itself_would_have_trained_frozen_by_hand(tmp_path, schedule, frozen):
    """Against a real trainer on the same rows in the same order, whose lower layers stop at the same shares of its steps."""
    trainer = guarded_trainer(tmp_path / "guarded", **ALL_THAT_COUNTS)
    run = placed(trainer, EVERY, schedule=schedule, **LONG)
    train(trainer)
    quality = run.report.quality
    rises = {round(after * quality["steps"]): layer for after, layer in frozen.items()}
    assert quality["rises"] == list(rises)
    for name, below in (("all_layers", {}), ("placed", rises)):
        real = loss_of_a_real_run(tmp_path / name, trainer, quality, FreezeBelow(below))
        assert quality["heldout_loss"][name] == pytest.approx(real, abs=1e-5)
    loss = quality["heldout_loss"]
    kept = (loss["before"] - loss["placed"]) / (loss["before"] - loss["all_layers"])
    assert quality["share_in_trial"] == pytest.approx(kept, abs=1e-6)
    assert loss["before"] - loss["all_layers"] > 0.01
    assert abs(loss["placed"] - loss["all_layers"]) > 1e-4


def test_what_is_tried_is_said_everywhere_and_nothing_acts_on_it(tmp_path, capsys, caplog):
    trainer = guarded_trainer(tmp_path)
    run = placed(trainer, EVERY, schedule="0.25:0.75", quality_threshold=1.0, **LONG)
    train(trainer)
    quality = run.report.quality
    assert set(quality) == set(KEYS)
    assert (quality["kind"], quality["share_kept"], quality["interval"]) == ("tried", None, None)
    assert quality["share_in_trial"] < 1.0  # under the threshold, which is one of the end
    low, high = quality["interval_in_trial"]
    assert low <= quality["share_in_trial"] <= high
    assert (quality["reaction"], quality["learning_rate_hint"]) == ("none", None)
    assert "placed_2x" not in quality["heldout_loss"]
    assert "Nothing acts on it" in quality["meaning"]
    assert "was ever held against the end" in quality["reason"]
    assert run.layers == EVERY
    assert "promised" not in caplog.text
    share = f"{quality['share_in_trial']:.0%}"
    said = capsys.readouterr()
    words = " ".join(said.err.split())
    assert (
        f"Trial of {quality['steps']} steps with the schedule's rises in them, on 16 examples of the eval set." in words
    )
    assert f"After it {share} (" in words
    assert "The run's end is not predicted. No short trial of a schedule" in words
    verdict = run.report.verdict["quality"]
    assert (verdict["kind"], verdict["share"]) == ("unproven", None)
    assert f"the schedule had kept {share} (" in verdict["sentence"]
    assert verdict["headline"] == f"unproven; {share} in a short trial"
    assert f"the schedule had kept {share} (" in " ".join(said.out.replace("[layercard]", "").split())
    page = " ".join((tmp_path / "report.html").read_text().split())
    assert f"the schedule had kept {share} (" in page
    assert "dashed line is the threshold" not in page
    assert run.report.unexplained() == []
    assert load_report(tmp_path / "report.json").quality == quality
    assert json.loads((tmp_path / "report.json").read_text())["quality"]["rises"] == quality["rises"]


def test_a_set_of_layers_rises_against_all_layer_lora_and_rises_that_do_no_harm_keep_all(tmp_path):
    """The lower two layers cannot help (guarded.py), so a schedule that stops them early is as good as all layers."""
    trainer = guarded_trainer(tmp_path / "harmless", lora={"lora_dropout": 0.0})
    run = placed(trainer, EVERY, schedule="0.25:0.5", **LONG)
    train(trainer)
    assert run.report.quality["share_in_trial"] == pytest.approx(1.0, abs=1e-3)
    trainer = guarded_trainer(tmp_path / "useless", lora={"lora_dropout": 0.0})
    run = placed(trainer, (0, 1), schedule="0.25:0.5", **LONG)
    train(trainer)
    assert run.report.quality["kind"] == "tried"
    assert run.report.quality["share_in_trial"] == pytest.approx(0.0, abs=1e-3)


def _reason(folder, schedule, changes=None, **settings):
    trainer = guarded_trainer(folder, **(changes or {}))
    run = placed(trainer, EVERY, schedule=schedule, **(LONG | settings))
    train(trainer)
    quality = run.report.quality
    assert (quality["kind"], quality["share_in_trial"], quality["reaction"]) == ("unknown", None, "none")
    assert quality["rises"] is None
    assert trainer.state.global_step == 2
    return quality["reason"]


def test_trials_that_cannot_hold_the_schedule_say_why(tmp_path):
    few = _reason(tmp_path / "few", "0.1:0.5, 0.13:0.75", guard_budget=0.04)
    assert "too few for each phase of the schedule to have one; " in few
    enough = int(few.split("; ")[1].split()[0])
    assert round(0.1 * enough) < round(0.13 * enough)
    assert "too short to have a step in a trial, which takes 64 at most" in _reason(tmp_path / "never", "0.001:0.5")
    assert "too short to try" in _reason(tmp_path / "short", "rising", {"max_steps": 10}, guard_budget=0.03)
    assert "guard` is off" in _reason(tmp_path / "off", "rising", guard=False)


def test_a_schedule_without_a_rise_is_what_its_layers_are(tmp_path):
    """A warm-up as long as the run leaves no rise: every layer is all-layer LoRA, and a part of them is tried as ever."""
    trainer = guarded_trainer(tmp_path / "every", warmup_steps=400)
    run = placed(trainer, EVERY, schedule="rising", **(LONG | {"measure": True, "measure_budget": 0.5}))
    train(trainer)
    assert (run.report.quality["kind"], run.report.quality["share_kept"]) == ("predicted", 1.0)
    assert "placed and all-layer steps are the same" in run.report.unavailable["step_speedup"]
    trainer = guarded_trainer(tmp_path / "part", warmup_steps=400)
    run = placed(trainer, (2, 3), schedule="rising", **LONG)
    train(trainer)
    assert run.report.quality["kind"] == "predicted"
    assert run.report.quality["rises"] is None
    assert 0 < run.report.quality["share_kept"] <= 1


def test_a_schedule_that_diverges_is_warned_of(tmp_path, capsys, caplog):
    class Fragile(Trainer):
        """Where the lowest layer learns no more, the step ruins what is left."""

        def training_step(self, model, *args, **kwargs):
            loss = super().training_step(model, *args, **kwargs)
            learning = {n: p for n, p in model.named_parameters() if p.requires_grad and "lora_B" in n}
            if not any("layers.0." in name for name in learning):
                for parameter in learning.values():
                    parameter.grad.fill_(float("nan"))
            return loss

    trainer = guarded_trainer(tmp_path, kind=Fragile, max_grad_norm=0.0)
    run = placed(trainer, EVERY, schedule="0.25:0.5", **LONG)
    train(trainer)
    quality = run.report.quality
    assert (quality["kind"], quality["reaction"]) == ("unknown", "warned")
    assert "diverged" in quality["reason"]
    assert "or train without `schedule`" in caplog.text + capsys.readouterr().err


def test_a_resumed_run_tells_what_its_beginning_found(tmp_path):
    trainer = guarded_trainer(tmp_path, save_strategy="steps", save_steps=1)
    run = placed(trainer, EVERY, schedule="0.25:0.75", **LONG)
    train(trainer)
    found = run.report.quality["share_in_trial"]
    resumed = guarded_trainer(tmp_path, stop_after=3)
    again = placed(resumed, EVERY, schedule="0.25:0.75", **LONG)
    train(resumed, resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert (again.report.quality["kind"], again.report.quality["share_in_trial"]) == ("tried", found)
