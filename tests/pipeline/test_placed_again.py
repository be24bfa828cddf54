"""A notebook cell run twice: `place` on a placed trainer, and on a trainer around a model that was placed before."""

from __future__ import annotations

import copy
import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer

import layercard
from adapted import assert_same, fingerprint
from guarded import WRONG, guarded_trainer
from layercard.errors import HostError, ModelError, PlacementError
from tiny import collate, tiny_examples
from trainers import Rows, arguments, equal, long_trainer, make_trainer, train, trained

SETTINGS: list[dict[str, Any]] = [
    {"lora_layers": [2, 3]},
    {"lora_layers": "auto"},
    {"lora_layers": {"strategy": "high", "num_layers": 1}},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("when", ["before", "after"])
def test_the_same_call_gives_the_same_run(tmp_path: Path, settings: dict[str, Any], when: str) -> None:
    trainer = make_trainer(tmp_path)
    run = layercard.place(trainer, **settings)
    if when == "after":
        train(trainer)
    callbacks, before = list(trainer.callback_handler.callbacks), fingerprint(trainer.model)
    assert layercard.place(trainer, **copy.deepcopy(settings)) is run
    assert trainer.callback_handler.callbacks == callbacks
    assert_same(before, fingerprint(trainer.model))


def test_the_same_layers_in_another_spelling_are_the_same_call(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    run = layercard.place(trainer, lora_layers=[3, 2])
    for spelling in ([2, 3], "2,3", {"indices": [2, 3]}):
        assert layercard.place(trainer, lora_layers=spelling) is run


@pytest.mark.parametrize("when", ["before", "after"])
def test_other_settings_are_refused_by_name_and_change_nothing(tmp_path: Path, when: str) -> None:
    trainer = make_trainer(tmp_path)
    run = layercard.place(trainer, lora_layers={"prefer": "quality"})
    if when == "after":
        train(trainer)
    before = fingerprint(trainer.model)
    what = "a new trainer" if when == "before" else "a model with fresh adapters and a new trainer"
    with pytest.raises(HostError, match=rf"`prefer` was 'quality' and is 'speed'.*build {what} and call `place`"):
        layercard.place(trainer, lora_layers={"prefer": "speed"})
    assert_same(before, fingerprint(trainer.model))
    assert layercard.place(trainer, lora_layers={"prefer": "quality"}) is run


def test_nothing_is_lost_by_the_second_call(tmp_path: Path) -> None:
    trainer = guarded_trainer(tmp_path)
    settings = {"lora_layers": [2, 3], "guard_budget": 0.5, "measure_budget": 0.5}
    layercard.place(trainer, **settings)
    run = layercard.place(trainer, **settings)
    trainer.train()
    assert run.report.baseline.trainable_parameters == 2 * run.report.placed.trainable_parameters
    assert run.report.quality["share_kept"] is not None


def around(model: Any, folder: Path, **changes: Any) -> Any:
    """Another trainer around a model that is there already."""
    rows = Rows(tiny_examples(40))
    return Trainer(model=model, args=arguments(folder, **changes), train_dataset=rows, data_collator=collate)


@pytest.mark.parametrize("second", [[2, 3], [1], "auto", "first"])
@pytest.mark.parametrize("first", [[2, 3], [0], "high"])
def test_a_second_trainer_around_an_untrained_model_places_as_on_a_new_one(
    tmp_path: Path, first: Any, second: Any
) -> None:
    earlier = make_trainer(tmp_path / "first")
    layercard.place(earlier, lora_layers=first)
    again = around(earlier.model, tmp_path / "second")
    run = layercard.place(again, lora_layers=second, measure=False, guard=False)
    fresh = make_trainer(tmp_path / "fresh")
    expected = layercard.place(fresh, lora_layers=second, measure=False, guard=False)
    assert run.layers == expected.layers
    train(again), train(fresh)
    assert equal(trained(again.model), trained(fresh.model))
    assert run.report.baseline.trainable_parameters == expected.report.baseline.trainable_parameters
    assert run.report.baseline.trainable_parameters is not None


def test_baseline_and_quality_are_not_lost_around_a_placed_model(tmp_path: Path) -> None:
    earlier = guarded_trainer(tmp_path / "first")
    layercard.place(earlier, lora_layers=[2, 3])
    again = Trainer(
        model=earlier.model,
        args=earlier.args,
        train_dataset=earlier.train_dataset,
        eval_dataset=earlier.eval_dataset,
        data_collator=collate,
        callbacks=[c for c in earlier.callback_handler.callbacks if type(c).__name__ == "StopAfter"],
    )
    run = layercard.place(again, lora_layers=list(WRONG), guard_budget=0.5, measure_budget=0.5)
    again.train()
    assert run.report.quality["share_kept"] is not None
    assert run.report.baseline.trainable_parameters == 2 * run.report.placed.trainable_parameters


def test_the_earlier_trainer_does_not_train_the_later_placement(tmp_path: Path) -> None:
    for number, layers in enumerate(([2, 3], [1])):
        earlier = make_trainer(tmp_path / f"first{number}")
        layercard.place(earlier, lora_layers=[2, 3])
        layercard.place(around(earlier.model, tmp_path / f"second{number}"), lora_layers=layers)
        before = trained(earlier.model)
        with pytest.raises(
            PlacementError, match=r"placed anew for another trainer.*Train with the trainer that was placed last"
        ):
            earlier.train()
        assert equal(before, trained(earlier.model))


def test_a_second_trainer_around_a_trained_model_is_refused_with_the_true_reason(tmp_path: Path) -> None:
    earlier = make_trainer(tmp_path / "first")
    layercard.place(earlier, lora_layers=[2, 3])
    train(earlier)
    before = fingerprint(earlier.model)
    with pytest.raises(
        ModelError, match=r"placed by an earlier trainer \(layers \[2, 3\]\) and trained since.*fresh adapters"
    ):
        layercard.place(around(earlier.model, tmp_path / "second"), lora_layers=[2, 3])
    assert_same(before, fingerprint(earlier.model))


def test_a_second_trainer_around_a_trained_model_can_resume(tmp_path: Path) -> None:
    earlier = make_trainer(tmp_path, save_strategy="steps", save_steps=2)
    layercard.place(earlier, lora_layers=[2, 3], measure=False, guard=False)
    train(earlier)
    ended = trained(earlier.model)
    checkpoint = str(tmp_path / "checkpoint-2")
    again = around(earlier.model, tmp_path, resume_from_checkpoint=checkpoint)
    run = layercard.place(again, measure=False, guard=False)
    train(again, resume_from_checkpoint=checkpoint)
    assert run.layers == (2, 3) and equal(ended, trained(again.model))


@pytest.mark.parametrize("wrong", [{"lora_layers": [9]}, {"lora_layers": "absent.json"}])
def test_a_placement_that_fails_leaves_an_earlier_one_in_force(tmp_path: Path, wrong: dict[str, Any]) -> None:
    earlier = make_trainer(tmp_path / "first")
    run = layercard.place(earlier, lora_layers=[2, 3], measure=False, guard=False)
    before = fingerprint(earlier.model)
    with pytest.raises(layercard.errors.LayercardError):
        layercard.place(around(earlier.model, tmp_path / "second"), **wrong)
    assert_same(before, fingerprint(earlier.model))
    train(earlier)
    assert run.report.baseline.trainable_parameters is not None


def test_a_trainer_whose_model_was_replaced_is_refused(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    layercard.place(trainer, lora_layers=[2, 3])
    trainer.model = trainer.model_wrapped = make_trainer(tmp_path / "other").model
    with pytest.raises(HostError, match="model was replaced"):
        layercard.place(trainer, lora_layers=[2, 3])


def test_a_run_that_the_guard_changed_is_returned_as_it_became(tmp_path: Path) -> None:
    trainer = guarded_trainer(tmp_path)
    settings = {"on_quality_loss": "all_layers", "guard_budget": 0.5, "measure_budget": 0.5}
    run = layercard.place(trainer, lora_layers=list(WRONG), **settings)
    trainer.train()
    assert layercard.place(trainer, lora_layers=list(WRONG), **settings) is run
    assert run.placement.is_all


def test_a_placed_model_is_let_go(tmp_path: Path) -> None:
    """What `place` remembers of a model must not keep it."""
    trainer = long_trainer(tmp_path)
    layercard.place(trainer, lora_layers=[2, 3])
    model = weakref.ref(trainer.model)
    del trainer
    gc.collect()
    assert model() is None
