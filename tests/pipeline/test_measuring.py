"""How the outcome of timing becomes a report."""

import pytest

from adapted import adapted
from layercard.anatomy.layers import find_layers
from layercard.cost.planned import PlannedSteps, StepsRun
from layercard.cost.speedup import StepCost
from layercard.cost.timing import Ratio
from layercard.pipeline.during.entry import EntryChoice
from layercard.pipeline.during.report import RunFacts, make_report
from layercard.pipeline.during.timing import Measurement
from layercard.pipeline.during.variants import why_not_timed
from layercard.placement.placement import LayerPlacement
from layercard.settings import PlacementSettings

PLACEMENT = LayerPlacement((2, 3), 4, "last", None, "given")


def _facts(**changes):
    measured = Measurement(
        baseline=StepCost(2.0, 10, 4, 0.1), placed=StepCost(1.0, 5, 2, 0.1), ratio=Ratio(2.0, 1.9, 2.1, 0.96, 8)
    )
    values = {
        "placement": PLACEMENT,
        "measurement": measured,
        "quality": {"kind": "unknown"},
        "device": adapted("llama").device,
        "planned": PlannedSteps(0, 100, 4, epoch=100),
        "probe_seconds": 10.0,
        "overhead_seconds": 30.0,
        "gradient_entry": {"layer": 2, "moved": True},
        "prefix_cache": {"on": False, "obstacle": "`prefix_cache` is off."},
    }
    return RunFacts(**(values | changes))


def test_end_to_end_counts_probe_and_overhead_over_all_micro_batches():
    report = make_report(_facts())
    assert report.end_to_end_speedup == pytest.approx(800 / (400 + 40))
    assert report.break_even_steps == 10
    assert report.step_speedup == 2.0
    assert report.unexplained() == []


def test_end_to_end_counts_cached_steps_from_the_second_epoch():
    measured = Measurement(
        baseline=StepCost(2.0),
        placed=StepCost(1.0),
        ratio=Ratio(2.0, 1.9, 2.1, 0.96, 8),
        cached=Ratio(4.0, 3, 5, 0.96, 8),
    )
    report = make_report(_facts(measurement=measured, prefix_cache={"on": True}))
    assert report.end_to_end_speedup == pytest.approx(800 / (25 * 4 + 75 * 2 + 40))
    assert report.prefix_cache == {"on": True, "step_speedup": 4.0, "interval": [3, 5]}


def test_a_training_that_ended_counts_what_it_ran():
    measured = Measurement(
        baseline=StepCost(2.0),
        placed=StepCost(1.0),
        ratio=Ratio(2.0, 1.9, 2.1, 0.96, 8),
        cached=Ratio(4.0, 3, 5, 0.96, 8),
    )
    facts = _facts(measurement=measured, run=StepsRun(10, 30, cached=12.0), partial=False)
    report = make_report(facts)
    assert report.end_to_end_speedup == pytest.approx(60 / (18 * 1 + 12 * 0.5 + 40))
    assert (report.planned_steps, report.steps_run, report.micro_batches) == (100, 10, 30)
    assert report.break_even_steps == 14  # 40 seconds, three a step


def test_a_placed_step_that_is_not_faster_never_breaks_even():
    slow = Measurement(baseline=StepCost(1.0), placed=StepCost(1.0), ratio=Ratio(1.0, 0.9, 1.1, 0.96, 8))
    report = make_report(_facts(measurement=slow))
    assert report.break_even_steps is None
    assert "not faster" in report.unavailable["break_even_steps"]


def test_what_ran_is_observed_without_the_first_step():
    assert make_report(_facts(observed=[1.0, 3.0])).observed_step_seconds == 2.0
    assert "observed_step_seconds" in make_report(_facts()).unavailable


def test_the_versions_of_what_ran_are_kept():
    assert {"torch", "peft", "transformers", "layercard"} <= make_report(_facts()).versions.keys()


def _choice(**settings):
    model = adapted("llama", layers_to_transform=[2, 3])
    return EntryChoice(model, find_layers(model), PLACEMENT, PlacementSettings.from_user([2, 3], **settings), None)


@pytest.mark.parametrize(
    ("peaks", "above"),
    [([(5, 10)], "off"), ([(11, 10)], "keep"), ([(None, 10)], "keep"), ([(5, 10), (11, 10)], "keep")],
)
def test_auto_checkpoints_unless_every_rank_stays_under_all_layer_lora(peaks, above):
    choice = _choice(checkpointing_above_entry="auto")
    assert choice.undecided
    choice.decide(peaks)
    assert not choice.undecided
    assert choice.to_dict()["checkpointing_above"] == above


def test_an_entry_that_is_switched_off_says_so():
    choice = _choice(gradient_entry=False)
    assert choice.entry is None
    assert choice.to_dict() == {"layer": 2, "moved": False, "obstacle": "`gradient_entry` is off."}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"torch_compile": True}, "torch.compile"),
        ({"optim": "galore_adamw_layerwise"}, "updates weights during backward"),
        ({"optim": "lomo"}, "updates weights during backward"),
    ],
)
def test_trainers_whose_steps_cannot_be_tried_out_are_named(tmp_path, changes, reason):
    from trainers import make_trainer

    trainer = make_trainer(tmp_path)
    for name, value in changes.items():
        setattr(trainer.args, name, value)
    found = why_not_timed(trainer)
    assert found is None if reason is None else reason in found
