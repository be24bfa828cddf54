"""Resuming: the saved placement is reused, and a checkpoint placed on other layers does not train."""

import json
import shutil

import pytest

from adapted import take_values
from layercard.errors import PlacementError, SettingsError
from layercard.hosts.plain import PlainHost
from layercard.pipeline.resume import is_resuming, saved_placement
from layercard.placement.placement import LayerPlacement
from layercard.settings import PlacementSettings
from trainers import equal, logs, make_trainer, placed, train, trained

LAYERS = (2, 3)
SAVED = LayerPlacement(LAYERS, 4, "high", "resnorm", "measured before")


def _saved(trainer, **settings):
    return saved_placement(PlainHost(trainer), PlacementSettings.from_user(**settings), 4)


def test_nothing_saved_gives_none(tmp_path):
    trainer = make_trainer(tmp_path)
    assert _saved(trainer) is None
    assert not is_resuming(PlainHost(trainer))


def test_a_placement_in_the_output_directory_is_reused(tmp_path):
    SAVED.save(tmp_path / "placement.json")
    trainer = make_trainer(tmp_path)
    same = [{}, {"indices": [3, 2]}, {"strategy": "high"}, {"num_layers": 2}, {"fraction": 0.5}, {"min_entry": 2}]
    assert [_saved(trainer, **settings) for settings in same] == [SAVED] * len(same)


@pytest.mark.parametrize("place", ["run/checkpoint-2", "run"])
def test_the_checkpoints_own_placement_goes_before_the_output_directorys(tmp_path, place):
    LayerPlacement((1,), 4, "last", None, "another").save(tmp_path / "out" / "placement.json")
    SAVED.save(tmp_path / place / "placement.json")
    checkpoint = str(tmp_path / "run" / "checkpoint-2")
    trainer = make_trainer(tmp_path / "out", resume_from_checkpoint=checkpoint)
    assert is_resuming(PlainHost(trainer))
    assert _saved(trainer) == SAVED


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
    with pytest.raises(SettingsError, match=rf"`{field}` is .*layers 2–3 of 0–3.*delete that file"):
        _saved(make_trainer(tmp_path), **settings)


def test_a_placement_of_another_depth_is_refused(tmp_path):
    LayerPlacement((5,), 8, "last", None, "deeper").save(tmp_path / "placement.json")
    with pytest.raises(PlacementError, match="8 layers"):
        _saved(make_trainer(tmp_path))


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


@pytest.mark.parametrize("other", [(1, 3), (3,), (1, 2, 3)])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_checkpoint_of_other_layers_stops_the_run_before_any_step(tmp_path, other, elsewhere):
    _checkpointed(tmp_path / "first", LAYERS)
    trainer = make_trainer(tmp_path / ("second" if elsewhere else "first"))
    placed(trainer, other)
    with pytest.raises((PlacementError, ValueError), match=r"other layers|parameter group"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-2"))
    assert trainer.state.global_step in (0, 2)


def test_the_message_names_both_sides(tmp_path):
    _checkpointed(tmp_path, LAYERS)
    trainer = make_trainer(tmp_path)
    placed(trainer, (1, 3))
    with pytest.raises(PlacementError, match=r"no adapters for layer 1 of 0–3.*layer 2 of 0–3"):
        trainer.train(resume_from_checkpoint=True)


def test_a_checkpoint_reloads_into_plain_peft_with_the_same_layers(tmp_path):
    trainer, _, _ = _checkpointed(tmp_path, LAYERS)
    by_hand = make_trainer(tmp_path / "hand", layers=list(LAYERS))
    take_values(by_hand.model, trainer.model)
    saved = json.loads((tmp_path / "checkpoint-2" / "adapter_config.json").read_text())
    assert saved["layers_to_transform"] == list(LAYERS)
    by_hand.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert by_hand.state.global_step == 4
