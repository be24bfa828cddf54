"""A schedule inside real trainers: the weights are those of freezing by hand, whatever else the run does."""

import json
import logging
import math
from dataclasses import replace

import pytest
from peft import PeftModel
from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from layercard import place
from layercard.anatomy.layers import find_layers
from layercard.cost.phased import PhaseCost, seconds_of
from layercard.cost.planned import PlannedSteps
from layercard.errors import HostError, SettingsError
from layercard.pipeline.during import beginning
from layercard.pipeline.during.phase_timing import measure_phases
from layercard.report.files import load_report
from layercard.report.page.render import html
from tiny import tiny_examples, tiny_model
from trainers import FreezeBelow, Rows, StopAfter, equal, logs, long_trainer, make_trainer, train, trained

STEPS = 8
SCHEDULE = "0.25:0.5, 0.5:0.75"
PHASES = [(0, 2, [0, 1, 2, 3]), (2, 4, [2, 3]), (4, 8, [3])]


def by_hand(folder, **changes):
    trainer = make_trainer(folder, max_steps=STEPS, **changes)
    trainer.add_callback(FreezeBelow({2: 2, 4: 3}))
    return trainer


def adapters(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"activation_checkpointing": True},
        {"gradient_accumulation_steps": 2},
        {"optim": "adafactor", "weight_decay": 0.1},
        {"eval_steps": 3},
    ],
    ids=["plain", "checkpointing", "accumulation", "adafactor", "evaluation"],
)
def test_weights_are_those_of_freezing_by_hand(tmp_path, changes):
    trainer, expected = (
        make_trainer(tmp_path / "placed", max_steps=STEPS, **changes),
        by_hand(tmp_path / "by_hand", **changes),
    )
    for each in (trainer, expected):
        if "eval_steps" in changes:
            each.eval_dataset, each.args.eval_strategy = Rows(tiny_examples(6)), IntervalStrategy.STEPS
    run = place(trainer, schedule=SCHEDULE)
    for each in (trainer, expected):
        train(each)
    assert equal(adapters(trainer.model), adapters(expected.model))
    assert [e.get("eval_loss") for e in logs(trainer)] == [e.get("eval_loss") for e in logs(expected)]
    report = run.report
    assert [(p["begins"], p["ends"], p["layers"]) for p in report.schedule] == PHASES
    assert all(p["gradient_entry"]["moved"] for p in report.schedule)
    assert report.backward_layers == (0, 1, 2, 3)
    assert report.unexplained() == []


def test_backpropagation_ends_where_layers_stopped_learning(tmp_path, caplog):
    trainer = make_trainer(tmp_path, max_steps=STEPS, activation_checkpointing=True)
    seen = {}

    class Watch(TrainerCallback):
        """Notes in each step which layers' outputs have a gradient."""

        def on_step_begin(self, args, state, control, model=None, **kwargs):
            ran = seen.setdefault(state.global_step, set())
            self.hooks = [
                layer.register_forward_hook(
                    lambda module, inputs, output, i=i: ran.add(i) if output.requires_grad else None
                )
                for i, layer in enumerate(find_layers(model).layers)
            ]

        def on_step_end(self, *args, **kwargs):
            for hook in self.hooks:
                hook.remove()

    place(trainer, schedule=SCHEDULE)
    trainer.add_callback(Watch())
    with caplog.at_level(logging.WARNING, "layercard"):
        train(trainer)
    assert {step: min(layers) for step, layers in seen.items()} == {0: 0, 1: 0, 2: 2, 3: 2, 4: 3, 5: 3, 6: 3, 7: 3}
    assert "take longer" not in caplog.text


def test_a_given_set_rises_among_its_own_layers_and_every_layer_is_saved(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=STEPS)
    run = place(trainer, lora_layers=[1, 2, 3], schedule="0.5:0.67")
    train(trainer)
    assert [p["layers"] for p in run.report.schedule] == [[1, 2, 3], [3]]
    values = adapters(trainer.model)
    trainer.save_model(str(tmp_path / "saved"))
    loaded = PeftModel.from_pretrained(tiny_model("llama"), str(tmp_path / "saved"))
    assert equal(adapters(loaded), values)
    assert {find_layers(trainer.model).layer_of(name) for name in values} == {1, 2, 3}
    assert trained(trainer.model).keys() == values.keys()  # everything may learn again after the run


def test_with_the_prefix_cache_what_is_below_is_cached_from_the_rise_on(tmp_path):
    found = []
    for cache in ("off", "1MiB"):
        trainer = make_trainer(tmp_path / cache, max_steps=60)
        for module in trainer.model.modules():
            if hasattr(module, "lora_dropout"):
                module.lora_dropout["default"].p = 0.0
        run = place(trainer, schedule="0.34:0.5", prefix_cache=cache)
        train(trainer)
        found.append((adapters(trainer.model), run.report.prefix_cache))
    (without, _), (cached, use) = found
    apart = max(float((cached[n] - w).norm() / w.norm()) for n, w in without.items())
    assert apart < 1e-4
    assert use["on"]
    assert use["hits"] == 40 * 2 - use["misses"] > 0  # two epochs are left after the rise, of 40 rows each
    assert not list((tmp_path / "1MiB").glob("prefix_cache*"))


CACHED = {"lora_layers": [1, 2, 3], "schedule": "0.34:0.34, 0.67:0.67"}
"""Three epochs of 40 rows: backpropagation ends at layer 1, 2 and 3."""


def cached_run(folder, cache, *, stop_after=None, resume=None, dropout=0.0, **changes):
    """Adapters after a run of three epochs with this prefix cache, and its report."""
    trainer = make_trainer(folder, max_steps=60, **changes)
    for module in trainer.model.modules():
        if hasattr(module, "lora_dropout"):
            module.lora_dropout["default"].p = dropout
    run = place(trainer, prefix_cache=cache, **CACHED)
    if stop_after is not None:
        trainer.add_callback(StopAfter(stop_after))
    train(trainer, resume_from_checkpoint=resume)
    return adapters(trainer.model), run.report


def furthest(found, expected):
    assert found.keys() == expected.keys()
    return max(float((found[n] - w).norm() / w.norm()) for n, w in expected.items())


@pytest.mark.parametrize("cache", ["1MiB", "1B"], ids=["memory", "disk"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"gradient_accumulation_steps": 2}, {"activation_checkpointing": True}],
    ids=["plain", "accumulation", "checkpointing"],
)
def test_at_a_rise_the_prefix_cache_rolls_forward(tmp_path, cache, changes):
    expected, _ = cached_run(tmp_path / "off", "off", **changes)
    found, report = cached_run(tmp_path / "on", cache, **changes)
    assert furthest(found, expected) < 1e-4
    use = report.prefix_cache
    assert (use["on"], use["off"], use["bypassed"]) == (True, None, {})
    assert use["misses"] == 0  # every row had been seen
    assert use["rolled"] > 0
    rows = 20 * 2 * changes.get("gradient_accumulation_steps", 1)
    assert use["hits"] == rows - use["rolled"]
    assert report.unexplained() == []
    assert load_report(tmp_path / "on" / "report.json").prefix_cache["rolled"] == use["rolled"]
    assert not list((tmp_path / "on").glob("prefix_cache*"))


@pytest.mark.parametrize("stopped", [10, 20, 30, 41, 50])
def test_a_resumed_run_rolls_what_it_cached_itself(tmp_path, stopped):
    """Resumed in each phase and at a rise; a folder that a killed run left is no hindrance."""
    whole, _ = cached_run(tmp_path / "whole", "off")
    saving = {"save_strategy": "steps", "save_steps": stopped}
    cached_run(tmp_path / "run", "1B", stop_after=stopped, **saving)
    (tmp_path / "run" / "prefix_cache-rank0").mkdir()
    (tmp_path / "run" / "prefix_cache-rank0" / "left.layercard-prefix").write_bytes(b"of a killed run")
    checkpoint = str(tmp_path / "run" / f"checkpoint-{stopped}")
    found, report = cached_run(tmp_path / "run", "1B", resume=checkpoint, resume_from_checkpoint=checkpoint, **saving)
    assert furthest(found, whole) < 1e-4
    use = report.prefix_cache
    assert use["off"] is None
    assert (use["rolled"] > 0) == (stopped < 40)  # later there is no rise left
    assert use["hits"] + use["rolled"] + use["misses"] == 2 * (60 - max(stopped, 40))
    assert not list((tmp_path / "run").glob("prefix_cache*"))


def test_where_dropout_stands_between_the_cache_ends_at_the_rise(tmp_path, caplog):
    expected, _ = cached_run(tmp_path / "off", "off", dropout=0.1)
    with caplog.at_level(logging.WARNING, "layercard"):
        found, report = cached_run(tmp_path / "on", "1B", dropout=0.1)
    assert furthest(found, expected) < 1e-4
    assert "Dropout is active below the entry" in report.prefix_cache["obstacle"]
    assert not list((tmp_path / "on").glob("prefix_cache*"))


@pytest.mark.parametrize("stopped", [1, 3, 5])
def test_a_resumed_run_goes_on_in_the_phase_of_its_step(tmp_path, stopped):
    whole = make_trainer(tmp_path / "whole", max_steps=STEPS)
    place(whole, schedule=SCHEDULE)
    train(whole)
    changes = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": 1}
    first = make_trainer(tmp_path / "run", **changes)
    place(first, schedule=SCHEDULE)
    first.add_callback(StopAfter(stopped))
    train(first)
    checkpoint = tmp_path / "run" / f"checkpoint-{stopped}"
    again = make_trainer(tmp_path / "run", resume_from_checkpoint=str(checkpoint), **changes)
    run = place(again, schedule=SCHEDULE)
    train(again, resume_from_checkpoint=str(checkpoint))
    assert equal(adapters(again.model), adapters(whole.model))
    assert [p["layers"] for p in run.report.schedule] == [layers for _, ends, layers in PHASES if ends > stopped]


def test_the_phases_are_timed_against_all_layer_lora_and_leave_no_trace(tmp_path, capsys):
    timed, silent = (long_trainer(tmp_path / name, activation_checkpointing=True) for name in ("timed", "silent"))
    run = place(timed, schedule="rising", measure_budget=0.5, checkpointing_above_entry="auto")
    place(silent, schedule="rising", measure=False)
    for trainer in (timed, silent):
        train(trainer)
    assert equal(adapters(timed.model), adapters(silent.model))
    report = run.report
    share = report.schedule[0]["ends"] / report.planned_steps
    mean = [
        share * a + (1 - share) * b
        for a, b in zip(report.timing["from layer 0"], report.timing["from layer 2"], strict=True)
    ]
    assert report.timing["placed"] == pytest.approx(mean)
    assert report.pairs == len(mean) >= 3
    assert report.unexplained() == []
    assert report.placed.peak_bytes is not None
    assert report.quality["rises"] == [round(0.25 * report.quality["steps"])]
    assert load_report(tmp_path / "timed" / "report.json").to_dict() == report.to_dict()
    assert json.loads((tmp_path / "timed" / "report.json").read_text())["schedule"][1]["layers"] == [2, 3]
    said = capsys.readouterr()
    assert "the mean step of the schedule" in said.out.lower()  # begins a sentence, unless it is too noisy to tell
    assert "Layers that learn: layers 0–3 of 0–3 in steps 1–750; layers 2–3 of 0–3 in steps 751–3,000." in said.out
    assert "After 25% of the steps only layers 2–3 of 0–3 learn" in said.err


def test_no_layer_stops_before_the_warm_up_ends(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=STEPS, warmup_steps=5)
    run = place(trainer, schedule="0.25:0.5")
    train(trainer)
    assert [(p["begins"], p["ends"]) for p in run.report.schedule] == [(0, 5), (5, 8)]


def test_training_again_begins_with_every_layer(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=4)
    run = place(trainer, schedule="0.5:0.5")
    for _ in range(2):
        train(trainer)
        assert [(p["begins"], p["ends"]) for p in run.report.schedule] == [(0, 2), (2, 4)]


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ("half", "is 'half'"),
        ("0.5", "is '0.5'"),
        ("0.5:0.5, 0.25:0.75", "go up"),
        ("0.25:0.5, 0.5:0.5", "go up"),
        ("1:0.5", "under 1"),
        ("0.5:0", "under 1"),
        ("nan:0.5", "under 1"),
        ("0.5:0.1", "by which no further layer"),
        (True, "is a text"),
    ],
)
def test_what_is_no_schedule_is_refused_before_training(tmp_path, schedule, words):
    trainer = make_trainer(tmp_path)
    with pytest.raises(SettingsError, match=words):
        place(trainer, schedule=schedule)
    assert len(trained(trainer.model)) == len(adapters(trainer.model)) > 0


def test_what_does_not_go_together_is_refused(tmp_path):
    for settings, words in [
        ({"gradient_entry": False}, "gradient_entry"),
        ({"on_quality_loss": "stop"}, "on_quality_loss"),
        ({"num_layers": 2}, "num_layers"),
    ]:
        with pytest.raises(SettingsError, match=words):
            place(make_trainer(tmp_path), schedule="rising", **settings)
    with pytest.raises(HostError, match=r"torch\.compile"):
        place(make_trainer(tmp_path, torch_compile=True), schedule="rising")


def test_all_is_a_strategy_and_off_is_no_schedule(tmp_path):
    run = place(make_trainer(tmp_path / "all"), lora_layers="all")
    assert (run.layers, run.placement.strategy) == ((0, 1, 2, 3), "all")
    run = place(make_trainer(tmp_path / "off"), lora_layers={"strategy": "last", "num_layers": 1, "schedule": False})
    assert (run.layers, run.settings.schedule) == ((3,), None)


def test_a_resumed_run_may_have_another_schedule_or_none(tmp_path):
    changes = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": 1}
    first = make_trainer(tmp_path, **changes)
    place(first, schedule=SCHEDULE)
    first.add_callback(StopAfter(5))
    train(first)
    for schedule, expected in (("rising", [[2, 3]]), (None, [])):
        checkpoint = str(tmp_path / "checkpoint-5")
        again = make_trainer(tmp_path, resume_from_checkpoint=checkpoint, **changes)
        run = place(again, lora_layers="all", schedule=schedule)
        train(again, resume_from_checkpoint=checkpoint)
        assert [p["layers"] for p in run.report.schedule] == expected


def test_a_run_resumed_after_the_last_rise_is_not_called_all_layer_lora(tmp_path, caplog):
    changes = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": 1}
    trainer = make_trainer(tmp_path, **changes)
    place(trainer, schedule=SCHEDULE, guard_budget=0.5)
    train(trainer)
    checkpoint = str(tmp_path / "checkpoint-6")
    resumed = make_trainer(tmp_path, resume_from_checkpoint=checkpoint, **changes)
    run = place(resumed, schedule=SCHEDULE, guard_budget=0.5)
    resumed.train(resume_from_checkpoint=checkpoint)
    report = run.report
    assert [(p["begins"], p["layers"]) for p in report.schedule] == [(4, [3])]
    assert report.quality["share_kept"] is None and report.quality["kind"] == "unknown"
    assert report.verdict["quality"]["kind"] == "unproven"
    assert report.verdict["speed"]["kind"] == "not measured"
    assert report.predicted["step_speedup"] > 1.5, "that of the steps that are left"
    assert "without `schedule`" not in caplog.text
    without = make_trainer(tmp_path, resume_from_checkpoint=checkpoint, **changes)
    place(without, lora_layers="all", guard=False)
    with caplog.at_level(logging.WARNING, "layercard"):
        without.train(resume_from_checkpoint=checkpoint)
    assert "This run was resumed without `schedule`" in caplog.text


@pytest.mark.parametrize(
    ("warm_up", "said"),
    [
        (0, None),
        (2, None),
        (6, "Warm-up takes 75% of the steps, and no layer stops learning before it ends."),
        (8, "The schedule does nothing in this run: 8 of its 8 optimizer steps are warm-up"),
    ],
)
def test_a_warm_up_that_puts_rises_off_is_said_and_counted_in_the_prediction(tmp_path, capsys, warm_up, said):
    trainer = make_trainer(tmp_path, max_steps=STEPS, warmup_steps=warm_up)
    run = place(trainer, schedule="rising", guard=False, measure=False)
    told = capsys.readouterr().err
    assert ("arm-up" in told) == (said is not None) and (said or "") in told
    train(trainer)
    resting = sum(p["ends"] - p["begins"] for p in run.report.schedule if p["layers"] == [2, 3]) / STEPS
    assert resting == 1 - max(0.25, warm_up / STEPS)
    predicted = run.report.predicted["step_speedup"]
    if resting == 0:
        assert predicted == 1.0 and "Predicted" not in told
    else:
        whole = make_trainer(tmp_path / "whole", max_steps=STEPS)
        whole = place(whole, schedule="0.001:0.5", guard=False, measure=False)  # from the second step on
        train(whole.host.trainer)
        saved = 1 - 1 / whole.report.predicted["step_speedup"]
        assert 1 - 1 / predicted == pytest.approx(saved * resting / (1 - 1 / STEPS))


def test_a_run_too_short_for_its_rises_says_so(tmp_path, capsys):
    place(make_trainer(tmp_path, max_steps=1), schedule="rising", guard=False)
    assert "The schedule does nothing in this run: it has 1 optimizer step, and none is left" in capsys.readouterr().err


def test_a_run_that_ends_before_a_rise_has_saved_nothing(tmp_path, monkeypatch):
    """With steps of 1 s, and of half a second after the rise, in place of what a clock says."""
    found = []

    def measured(*args):
        found.append(measure_phases(*args))
        baseline, placed = (
            replace(cost, step_seconds=s) for cost, s in ((found[0].baseline, 1.0), (found[0].placed, 0.75))
        )
        return replace(found[0], baseline=baseline, placed=placed, phases=[PhaseCost(1500, 1.0), PhaseCost(3000, 0.5)])

    monkeypatch.setattr(beginning, "measure_phases", measured)
    trainer = long_trainer(tmp_path, stop_after=6)
    run = place(trainer, schedule="0.5:0.5", guard=False, measure_budget=0.5)
    train(trainer)
    whole = PlannedSteps(0, trainer.args.max_steps, 1)
    assert seconds_of(found[0].phases, whole) == pytest.approx(found[0].placed.step_seconds), (
        "phases add up to a mean step"
    )
    report, spent = run.report, run.report.probe_seconds + run.report.overhead_seconds
    assert report.seconds_saved == pytest.approx(-spent)
    assert report.end_to_end_speedup == pytest.approx(6 / (6 + spent))
    assert report.break_even_steps == 1500 + math.ceil(spent / 0.5)
    assert "The run ended after step 6 of 3,000." in report.verdict["notes"][0]
    assert report.unexplained() == [] and html(report)
