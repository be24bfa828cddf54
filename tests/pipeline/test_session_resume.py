"""Resuming: the resumed run's placement is used again, and a checkpoint placed on other layers does not train."""

import json
import shutil

import pytest
from peft import LoraConfig, PeftModel, get_peft_model

import layercard
from adapted import take_values
from layercard.anatomy.layers import find_layers
from layercard.errors import PlacementError, SettingsError
from layercard.hosts.plain import PlainHost
from layercard.pipeline.before.record import record_of_run
from layercard.pipeline.before.resume import checkpoint_folder, is_resuming, resumed_placement
from layercard.placement.placement import LayerPlacement
from layercard.settings import PlacementSettings
from tiny import collate, tiny_examples, tiny_model
from trainers import Rows, arguments, equal, logs, make_trainer, placed, train, trained

LAYERS = (2, 3)
SAVED = LayerPlacement(LAYERS, 4, "high", "resnorm", "measured before")


def _resuming(folder, **changes):
    return make_trainer(folder, resume_from_checkpoint="True", **changes)


def _saved(trainer, **settings):
    host, wanted = PlainHost(trainer), PlacementSettings.from_user(**settings)
    return resumed_placement(host, wanted, record_of_run(host, wanted, find_layers(host.model)))


def test_nothing_saved_gives_none(tmp_path):
    assert _saved(_resuming(tmp_path)) is None


@pytest.mark.parametrize(
    ("named", "resumes"), [(None, False), ("false", False), ("", False), ("true", True), (True, True), ("a/b", True)]
)
def test_the_arguments_say_whether_a_run_resumes(tmp_path, named, resumes):
    host = PlainHost(make_trainer(tmp_path, resume_from_checkpoint=named))
    assert is_resuming(host) is resumes
    assert (checkpoint_folder(host) is not None) is (named == "a/b")


def test_a_run_that_does_not_resume_takes_nothing(tmp_path):
    SAVED.save(tmp_path / "placement.json")
    assert _saved(make_trainer(tmp_path)) is None


def test_the_placement_of_the_resumed_run_is_reused(tmp_path):
    SAVED.save(tmp_path / "placement.json")
    trainer = _resuming(tmp_path)
    same = [{}, {"indices": [3, 2]}, {"strategy": "high"}, {"num_layers": 2}, {"fraction": 0.5}, {"min_entry": 2}]
    assert [_saved(trainer, **settings).placement for settings in same] == [SAVED] * len(same)


@pytest.mark.parametrize("place", ["run/checkpoint-2", "run"])
def test_the_checkpoints_own_placement_goes_before_the_output_directorys(tmp_path, place):
    LayerPlacement((1,), 4, "last", None, "another").save(tmp_path / "out" / "placement.json")
    SAVED.save(tmp_path / place / "placement.json")
    checkpoint = str(tmp_path / "run" / "checkpoint-2")
    trainer = make_trainer(tmp_path / "out", resume_from_checkpoint=checkpoint)
    assert _saved(trainer).placement == SAVED


def test_the_last_checkpoint_is_meant_where_none_is_named(tmp_path):
    LayerPlacement((1,), 4, "last", None, "a later run").save(tmp_path / "placement.json")
    LayerPlacement((0,), 4, "last", None, "first").save(tmp_path / "checkpoint-9" / "placement.json")
    SAVED.save(tmp_path / "checkpoint-10" / "placement.json")
    assert _saved(_resuming(tmp_path)).placement == SAVED


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"indices": [1, 3]}, "indices"),
        ({"strategy": "uniform"}, "strategy"),
        ({"strategy": "high", "score": "cka"}, "score"),
        ({"num_layers": 3}, "num_layers"),
        ({"fraction": 1.0}, "fraction"),
        ({"min_entry": 3}, "min_entry"),
        ({"lora_layers": "{}/other.json"}, "lora_layers"),
    ],
)
def test_settings_that_contradict_the_saved_placement_say_what_to_do(tmp_path, settings, field):
    SAVED.save(tmp_path / "placement.json")
    LayerPlacement((1,), 4, "last", None, "another").save(tmp_path / "other.json")
    settings = {k: v.format(tmp_path) if isinstance(v, str) else v for k, v in settings.items()}
    with pytest.raises(
        SettingsError, match=rf"`{field}` is .*layers 2–3 of 0–3.*drop `{field}`.*without `resume_from_checkpoint`"
    ):
        _saved(_resuming(tmp_path), **settings)


def test_a_placement_of_another_depth_is_refused(tmp_path):
    LayerPlacement((5,), 8, "last", None, "deeper").save(tmp_path / "placement.json")
    with pytest.raises(PlacementError, match="8 layers"):
        _saved(_resuming(tmp_path))


def _first(folder, make=make_trainer, **settings):
    """Place a run and leave a checkpoint folder, as one that was killed after its first save does."""
    run = layercard.place(make(folder), measure=False, guard=False, **settings)
    run.placement.save(folder / "checkpoint-1" / "placement.json")
    (folder / "checkpoint-1" / "trainer_state.json").write_text('{"global_step": 1}')
    return run


@pytest.mark.parametrize(
    ("before", "now", "field", "then", "found"),
    [
        ({"lora_layers": {"prefer": "quality"}}, {"lora_layers": {"prefer": "speed"}}, "prefer", "quality", "speed"),
        ({}, {"cards": "off"}, "cards", None, "off"),
        (
            {"strategy": "cumulative", "cumulative_threshold": 0.2},
            {"strategy": "cumulative", "cumulative_threshold": 0.9},
            "cumulative_threshold",
            0.2,
            0.9,
        ),
        ({"strategy": "random"}, {"strategy": "random", "random_seed": 3}, "random_seed", 0, 3),
        ({"strategy": "high"}, {"strategy": "high", "probe_examples": 5}, "probe_examples", 32, 5),
    ],
)
def test_a_setting_that_the_choice_depends_on_is_named_then_and_now(tmp_path, before, now, field, then, found):
    _first(tmp_path, **before)
    with pytest.raises(SettingsError) as error:
        layercard.place(_resuming(tmp_path), **now)
    assert f"`{field}` is {found!r}" in str(error.value) and f"chosen with {then!r}" in str(error.value)
    assert "put `" in str(error.value) and "without `resume_from_checkpoint`" in str(error.value)


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({"lora_layers": [2, 3]}, {"lora_layers": [3, 2], "random_seed": 4, "probe_examples": 3}),
        ({"lora_layers": "uniform"}, {"lora_layers": "uniform", "random_seed": 4, "prefer": "speed"}),
        ({}, {"random_seed": 4, "measure_budget": 0.1, "guard_budget": 0.2, "gradient_entry": False}),
    ],
)
def test_settings_that_the_choice_did_not_read_may_change(tmp_path, before, now):
    run = _first(tmp_path, **before)
    assert layercard.place(_resuming(tmp_path), **now).layers == run.layers


def test_a_setting_no_longer_given_and_other_data_are_named_and_change_nothing(tmp_path, capfd):
    run = _first(tmp_path, lora_layers={"prefer": "quality"})
    capfd.readouterr()
    trainer = _resuming(tmp_path)
    trainer.train_dataset = Rows(tiny_examples(30, seed=5))
    assert layercard.place(trainer).layers == run.layers
    said = " ".join(capfd.readouterr().err.split())
    assert "`prefer` was 'quality' and is 'balanced'" in said
    assert "the data was 40 rows, digest" in said and "and is 30 rows, digest" in said


def _other_weights(folder, **changes):
    trainer = make_trainer(folder, **changes)
    trainer.model.get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight.data.mul_(1.5)
    return trainer


def _other_targets(folder, **changes):
    model = get_peft_model(tiny_model("llama"), LoraConfig(r=4, target_modules=["k_proj"], task_type="CAUSAL_LM"))
    args = arguments(folder, **changes)
    return type(make_trainer(folder))(
        model=model, args=args, train_dataset=Rows(tiny_examples(40)), data_collator=collate
    )


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda f, **c: make_trainer(f, family="qwen2", **c), r"the model was .* and is "),
        (_other_weights, r"the model was .* and is "),
        (_other_targets, r"`target_modules` was \['down_proj', 'q_proj', 'v_proj'\] and is \['k_proj'\]"),
    ],
    ids=["family", "weights", "targets"],
)
def test_another_model_or_other_modules_do_not_resume(tmp_path, make, found):
    _first(tmp_path)
    trainer = make(tmp_path, resume_from_checkpoint="True")
    before = trained(trainer.model)
    with pytest.raises(PlacementError, match=rf"chosen for another run: {found}"):
        layercard.place(trainer)
    assert equal(before, trained(trainer.model))


def test_a_run_that_does_not_resume_says_what_it_replaces(tmp_path, capfd):
    first = layercard.place(make_trainer(tmp_path), lora_layers=[2, 3])
    capfd.readouterr()
    again = layercard.place(make_trainer(tmp_path), lora_layers=[2, 3])
    assert "is replaced" not in capfd.readouterr().err and again.layers == first.layers
    layercard.place(make_trainer(tmp_path), lora_layers=[1])
    said = " ".join(capfd.readouterr().err.split())
    assert "placement.json of an earlier run (layers 2–3 of 0–3, strategy `indices`) is replaced" in said
    assert LayerPlacement.load(tmp_path / "placement.json").layers == (1,)


def _checkpointed(folder, layers):
    """Train two of four steps and keep the checkpoint of the second."""
    trainer = make_trainer(folder, save_strategy="steps", save_steps=2)
    run = placed(trainer, layers, measure=False)
    initial = trained(trainer.model)
    train(trainer)
    shutil.rmtree(folder / "checkpoint-4")
    return trainer, run, initial


def test_a_resumed_run_trains_what_an_uninterrupted_one_trains(tmp_path):
    whole, _, _ = _checkpointed(tmp_path, LAYERS)
    resumed = make_trainer(tmp_path, save_strategy="no")
    run = placed(resumed, LAYERS)
    train(resumed, resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    assert equal(trained(resumed.model), trained(whole.model))
    told = {"loss", "grad_norm", "learning_rate", "num_input_tokens_seen", "step"}
    lines = [[{k: line[k] for k in told} for line in logs(each) if "loss" in line] for each in (resumed, whole)]
    assert lines[0] == lines[1]
    assert run.report.planned_steps == 2


def test_a_resumed_run_that_measures_trains_the_same(tmp_path):
    from trainers import StopAfter

    results = []
    _, _, _ = _checkpointed(tmp_path, LAYERS)
    for measure in (True, False):
        resumed = make_trainer(tmp_path, save_strategy="no", max_steps=3000)
        run = placed(resumed, LAYERS, measure=measure, measure_budget=0.5)
        resumed.add_callback(StopAfter(5))
        train(resumed, resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        assert (run.report.step_speedup is not None) is measure
        results.append(trained(resumed.model))
    assert equal(*results)


@pytest.mark.parametrize("other", [(1, 3), (3,), (1, 2, 3), (0, 1, 2, 3)])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_checkpoint_of_other_layers_stops_the_run_before_its_optimizer_is_loaded(tmp_path, other, elsewhere):
    _checkpointed(tmp_path / "first", LAYERS)
    trainer = make_trainer(tmp_path / ("second" if elsewhere else "first"))
    placed(trainer, other)
    before = trained(trainer.model)
    with pytest.raises(PlacementError, match=r"other layers.*`resume_from_checkpoint`.*`lora_layers: \[2, 3\]`"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-2"))
    assert trainer.optimizer is None and trainer.state.global_step == 0
    assert equal(before, trained(trainer.model))


@pytest.mark.parametrize("other", [(1, 3), (3,), (0, 1, 2, 3)])
def test_a_named_checkpoint_of_other_layers_is_refused_by_place(tmp_path, other):
    """Checkpoints without a placement of their own, beside a placement.json that a later run wrote."""
    _checkpointed(tmp_path, LAYERS)
    (tmp_path / "checkpoint-2" / "placement.json").unlink()
    trainer = make_trainer(tmp_path, resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    with pytest.raises(PlacementError, match=r"checkpoint-2 adapts layers 2–3 of 0–3.*`lora_layers: \[2, 3\]`"):
        layercard.place(trainer, lora_layers=list(other))
    assert layercard.place(trainer, lora_layers=[2, 3], measure=False, guard=False).layers == LAYERS


def test_the_message_names_both_sides(tmp_path):
    _checkpointed(tmp_path, LAYERS)
    trainer = make_trainer(tmp_path)
    placed(trainer, (1, 3))
    with pytest.raises(PlacementError, match=r"no adapters for layer 1 of 0–3.*layer 2 of 0–3"):
        trainer.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("said", ["True", "checkpoint"])
def test_each_checkpoint_carries_its_placement_whatever_comes_after(tmp_path, said):
    """Another run may have written over the folder's placement.json: the checkpoint still says what it was placed on."""
    whole = make_trainer(tmp_path, save_strategy="steps", save_steps=2)
    run = layercard.place(whole, lora_layers={"prefer": "quality"}, measure=False, guard=False)
    train(whole)
    shutil.rmtree(tmp_path / "checkpoint-4")
    layercard.place(make_trainer(tmp_path), lora_layers=[0])
    named = "True" if said == "True" else str(tmp_path / "checkpoint-2")
    resumed = make_trainer(tmp_path, resume_from_checkpoint=named)
    again = layercard.place(resumed, lora_layers={"prefer": "quality"}, measure=False, guard=False)
    assert again.layers == run.layers
    train(resumed, resume_from_checkpoint=True if said == "True" else named)
    assert equal(trained(resumed.model), trained(whole.model))


def test_a_finished_run_loads_its_best_checkpoint(tmp_path):
    """The trainer gives the model states at other times too; they are no business of resuming."""
    made = make_trainer(tmp_path)
    often = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    trainer = type(made)(
        model=made.model,
        args=arguments(tmp_path, load_best_model_at_end=True, **often),
        train_dataset=made.train_dataset,
        eval_dataset=Rows(tiny_examples(8, seed=3)),
        data_collator=collate,
    )
    layercard.place(trainer, lora_layers=[2, 3], measure=False, guard=False)
    train(trainer)
    assert trainer.state.best_model_checkpoint is not None


def test_a_checkpoint_reloads_into_plain_peft_with_the_same_layers(tmp_path):
    trainer, _, _ = _checkpointed(tmp_path, LAYERS)
    by_hand = make_trainer(tmp_path / "hand", layers=list(LAYERS))
    take_values(by_hand.model, trainer.model)
    saved = json.loads((tmp_path / "checkpoint-2" / "adapter_config.json").read_text())
    assert saved["layers_to_transform"] == list(LAYERS)
    by_hand.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert by_hand.state.global_step == 4
    assert PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "checkpoint-2").peft_config["default"].r == 4
