"""The validity benchmark's runs on a tiny model: what arms train, that runs repeat, that a killed benchmark goes on."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from layercard import plugins
from layercard.anatomy.layers import find_layers
from layercard.anatomy.targets import find_targets
from layercard.cost.predict import UnitCosts
from layercard.data import collate
from layercard.study.adapting import adapted
from layercard.study.settings import StudySettings

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from validity import results, run, training, work
from validity.arms import FixedLayers, all_layers, modules_arm, widened
from validity.live import Live
from validity.pairs import RATE_BLOCK, Pair, Subject
from validity.recipe import NewExamples, Recipe
from validity.schedules import DroppedBackward, GradientRise, RedrawnEntry, RisingEntry, rise_by
from validity.training import Course, losses, train

from tiny import tiny_model, tiny_tokenizer

RECIPE = Recipe(steps=4, epoch_steps=3, every=2, rate_steps=2, warm_up=1, averaging=0.0)
PAIR = Pair("tiny", "counting", 2, 64, 3)


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    made = [{"prompt": f"{n} and {n} are", "completion": f" {2 * n}"} for n in range(10, 60)]
    (tmp_path / PAIR.data).mkdir()
    for file in ("train.jsonl", "heldout.jsonl"):
        (tmp_path / PAIR.data / file).write_text("".join(json.dumps(row) + "\n" for row in made))
    model = tiny_model("llama")
    return Subject(PAIR, model, tiny_tokenizer(), tmp_path)


def losses_of(subject: Subject, arm: Any, steps: int = 6) -> list[float]:
    found = train(subject, arm, RECIPE, Course(1, 1, 1e-2, steps, 2, 0))
    return [point["loss"] for point in found["points"]]


def depth_of(subject: Subject) -> int:
    depth: int = subject.base.config.num_hidden_layers
    return depth


def test_blocks_of_rows_share_no_example(subject: Subject) -> None:
    blocks = [subject.training_rows(RECIPE.rows(block, 2)) for block in (0, 1, 2)]
    texts = {tuple(row["input_ids"]) for block in blocks for row in block}
    assert len(texts) == 18
    judged = [tuple(row["input_ids"]) for block in (0, 1) for row in subject.heldout_rows(block)]
    assert len(set(judged)) == 6
    with pytest.raises(ValueError, match="are needed"):
        subject.training_rows(RECIPE.rows(9, 2))


def test_a_run_repeats_bit_for_bit_and_learns(subject: Subject) -> None:
    arm = FixedLayers((depth_of(subject) - 1,), depth_of(subject))
    first = losses_of(subject, arm)
    assert losses_of(subject, arm) == first
    assert first[-1] < first[0]


def test_rising_before_anything_was_trained_is_the_placement_of_what_is_above(subject: Subject) -> None:
    depth = depth_of(subject)
    entry = depth // 2
    risen = RisingEntry(((0, entry / depth),))
    placed = FixedLayers(tuple(range(entry, depth)), depth)
    # adapters below are at their initial values, which add nothing; both cache the same prefix
    assert losses_of(subject, risen) == pytest.approx(losses_of(subject, placed), rel=1e-5)


def test_rising_later_is_all_layer_lora_until_then_and_another_training_after(subject: Subject) -> None:
    whole = losses_of(subject, all_layers(depth_of(subject)))
    risen = losses_of(subject, RisingEntry(((4, 0.5),)))
    assert risen[:2] == whole[:2]
    assert risen[2] != whole[2]


def test_the_entry_rises_past_the_lowest_layers_whose_gradients_change_least() -> None:
    before, now = [4.0, 4.0, 4.0, 4.0, 4.0], [4.1, 4.2, 6.0, 4.0, 9.0]
    assert rise_by(before, now, 0, 0.5, 4) == 2  # changes .025 .05 .5 0 1.25; the median is .05
    assert rise_by(before, now, 0, 1.0, 4) == 4  # none is above the largest: the limit of the depth
    assert rise_by(before, now, 2, 0.4, 4) == 2  # of layers 2 to 4 the lowest changed more than the least
    assert rise_by(before, now, 3, 0.0, 4) == 4
    assert rise_by(before, now, 3, 0.0, 2) == 3  # never falls


def test_rising_by_gradients_is_all_layer_lora_until_it_rises(subject: Subject) -> None:
    whole = losses_of(subject, all_layers(depth_of(subject)))
    risen = losses_of(subject, GradientRise(1, 1.0, 4, highest=0.5))
    assert risen[:2] == whole[:2]
    assert risen[2] != whole[2]
    assert losses_of(subject, GradientRise(1, 1.0, 4, highest=0.0)) == whole
    assert risen == pytest.approx(losses_of(subject, RisingEntry(((4, 0.5),))), rel=1e-5)


def test_dropped_layers_run_as_they_are_and_the_others_gradient_passes_straight(subject: Subject) -> None:
    batch = collate(subject.training_rows(slice(0, 2)), 0)
    model, stack = adapted(subject.base, "causal", StudySettings(), 0, plugins.extensions())
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    model.train()
    with Live(model, stack, 0) as live:
        whole, _ = losses(live, batch)
        live.drop_backward({1})
        found, _ = losses(live, batch)
        assert torch.equal(found, whole)
        found.mean().backward()
    at = {i: [p.grad for p in stack.layers[i].parameters() if p.requires_grad] for i in range(len(stack))}
    assert all(grad is None for grad in at[1])
    assert all(grad is not None for i in at if i != 1 for grad in at[i])
    # the same by hand: what the layer adds to its input is a constant
    expected = [p.grad.clone() for p in stack.layers[0].parameters() if p.grad is not None]
    model.zero_grad()
    layer, run = stack.layers[1], type(stack.layers[1]).forward
    layer.forward = lambda hidden, *a, **k: hidden + (run(layer, hidden, *a, **k) - hidden).detach()
    try:
        losses(live, batch)[0].mean().backward()
    finally:
        del layer.forward
    for parameter, grad in zip([p for p in stack.layers[0].parameters() if p.requires_grad], expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-3, atol=1e-7)
    assert all("forward" not in vars(layer) for layer in stack.layers)


def test_nothing_dropped_is_all_layer_lora_and_a_drawn_entry_is_not(subject: Subject) -> None:
    whole = losses_of(subject, all_layers(depth_of(subject)))
    assert losses_of(subject, DroppedBackward(0.0)) == whole
    assert losses_of(subject, RedrawnEntry(0.0)) == whole
    assert losses_of(subject, DroppedBackward(0.5)) != whole
    assert losses_of(subject, RedrawnEntry(1.0)) != whole


def test_a_set_of_all_modules_of_some_layers_is_the_set_of_these_layers(subject: Subject) -> None:
    stack, depth = find_layers(subject.base), depth_of(subject)
    targets = find_targets(subject.base, stack)
    names = [f"{stack.name(t.layer)}.{t.name}" for t in targets if t.layer >= depth - 1]
    arm = modules_arm(names, stack.layer_of, len(targets) // depth)
    assert arm.layers == (depth - 1,)
    placed = FixedLayers(arm.layers, depth)
    assert losses_of(subject, arm) == losses_of(subject, placed)
    units = UnitCosts()
    assert arm.cost(depth, 0, 3, units) == pytest.approx(placed.cost(depth, 0, 3, units))


def test_fewer_layers_at_a_higher_rank_have_as_many_parameters_and_learn_otherwise(subject: Subject) -> None:
    depth = depth_of(subject)
    arm = FixedLayers(tuple(range(0, depth, 2)), depth)
    wider = widened("uniform", arm)
    assert (wider.rank, wider.label, wider.layers) == (16, "uniform-rank-16", arm.layers)
    course = Course(1, 1, 1e-2, 4, 2, 0)
    whole, found = train(subject, all_layers(depth), RECIPE, course), train(subject, wider, RECIPE, course)
    assert found["trainable_parameters"] == whole["trainable_parameters"]
    assert [p["loss"] for p in found["points"]] != [p["loss"] for p in train(subject, arm, RECIPE, course)["points"]]


def test_a_killed_benchmark_goes_on_and_trains_nothing_twice(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []

    def counted(subject: Subject, arm: Any, recipe: Recipe, course: Course) -> dict[str, Any]:
        trained.append(f"{results.key_text(arm.key())} {course}")
        if len(trained) == 5:
            raise KeyboardInterrupt
        return train(subject, arm, recipe, course)

    monkeypatch.setattr(work, "train", counted)
    lab = work.Lab(lambda pair: subject, RECIPE, tmp_path / "results", "torch.float32", {"processor": "any"})
    with pytest.raises(KeyboardInterrupt):
        work.work_through(lab, [PAIR], [0])
    work.work_through(lab, [PAIR], [0])
    killed = trained.pop(4)
    assert trained.count(killed) == 1
    assert len(set(trained)) == len(trained)
    before = len(trained)
    work.work_through(lab, [PAIR], [0])
    assert len(trained) == before
    found = results.read(tmp_path / "results", PAIR.name)
    summary = results.summary(found, found.seeds)
    assert found.choices is not None
    arms = {row["arm"] for row in summary["rows"]}
    assert {arm for arm in arms if "-rank-" not in arm} == set(found.choices["selectors"])
    assert {arm.split("-rank-")[0] for arm in arms if "-rank-" in arm} == {"auto-balanced", "uniform"}
    assert set(summary["spearman"]) == set(found.choices["scores"])
    whole = next(row for row in summary["rows"] if row["arm"] == "all-layer")
    assert (whole["kept"], whole["step_time"]) == (1.0, 1.0)


def test_steps_under_checkpointing_are_timed_beside_all_layer_loras_and_train_nothing(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = work.Lab(lambda pair: subject, RECIPE, tmp_path / "results", "torch.float32", {"processor": "any"})
    schedule = RisingEntry(((2, 0.5),))
    only = ["last", schedule.label]
    work.work_through(lab, [PAIR], [0], [schedule], only=only)
    monkeypatch.setattr(work, "train", None)
    work.work_through(lab, [PAIR], [0], [schedule], only=only, checkpointed=True)
    found = results.read(tmp_path / "results", PAIR.name)
    plain = {row["arm"]: row for row in results.rows(found, [0])}
    timed = {row["arm"]: row for row in results.rows(found, [0], checkpointed=True)}
    assert {"all-layer", "last", schedule.label} <= set(timed) <= set(plain)
    assert timed["all-layer"]["step_time"] == 1.0
    for name in only:
        assert timed[name]["loss_at_equal_steps"] == plain[name]["loss_at_equal_steps"]
        assert timed[name]["step_time"] != plain[name]["step_time"]
    (risen,) = (phases for key, phases in found.clocks.items() if "schedule" in key)
    assert [(phase["at"], phase["entry"]) for phase in risen] == [(0, 0), (2, depth_of(subject) // 2)]
    assert risen[0]["seen"] == 1.0


def test_results_of_other_settings_are_not_mixed(tmp_path: Path) -> None:
    (tmp_path / "pair").mkdir()
    for number in (1, 2):
        inputs = {"pair": {}, "recipe": {"steps": number}, "dtype": "torch.float32", "kind": "rate"}
        (tmp_path / "pair" / f"{number}.json").write_text(json.dumps({"inputs": inputs, "result": {}}))
    with pytest.raises(ValueError, match="other settings"):
        results.read(tmp_path, "pair")


def test_runs_on_new_examples_see_none_twice_and_none_that_rates_were_chosen_on(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = NewExamples(steps=4, epoch_steps=8, every=2, rate_steps=2, warm_up=1, averaging=0.0, apart=RECIPE.epoch_steps)
    lab = work.Lab(lambda pair: subject, RECIPE, tmp_path / "results", "torch.float32", {"processor": "any"})
    work.work_through(lab, [PAIR], [0], only=["last"])
    trained: list[list[tuple[int, ...]]] = []
    monkeypatch.setattr(training, "losses", lambda live, batch: _noting(trained, live, batch))
    work.work_through(replace(lab, new_examples=new), [PAIR], [0, 1], only=["last"])
    assert len(trained) == 4 * new.epoch_steps  # two arms, two seeds: choices and rates were read from before
    seen = [tuple(text for batch in trained[i : i + 8] for text in batch) for i in range(0, len(trained), 8)]
    assert seen[0] == seen[1]  # both arms in one order
    assert seen[2] == seen[3]
    texts = seen[0] + seen[2]
    assert len(set(texts)) == len(texts) == 32
    apart = {tuple(row["input_ids"]) for row in subject.training_rows(RECIPE.rows(RATE_BLOCK, PAIR.batch))}
    assert not apart & set(texts)
    found = results.read(tmp_path / "results", PAIR.name, new_examples=True)
    rows = {row["arm"]: row for row in results.rows(found, [0, 1])}
    assert {"all-layer", "last"} <= set(rows)
    assert rows["all-layer"]["step_time"] == 1.0
    assert len(results.rows(results.read(tmp_path / "results", PAIR.name), [0])) >= 2
    runs = [run for by_seed in found.runs.values() for run in by_seed.values()]
    assert all(run["prefix_cache"] is None for run in runs)


def test_the_smoke_test_goes_through_everything() -> None:
    found = run._quick(torch.float32, {"processor": "any"})
    assert {"all-layer", "last"} <= {row["arm"] for row in found["random-counting"]["rows"]}


def _noting(trained: list[list[tuple[int, ...]]], live: Live, batch: Any) -> Any:
    """Run `losses`, and note the texts that are trained on."""
    if torch.is_grad_enabled():
        rows = zip(batch["input_ids"], batch["attention_mask"], strict=True)
        trained.append([tuple(ids[mask.bool()].tolist()) for ids, mask in rows])
    return losses(live, batch)
