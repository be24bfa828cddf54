"""Records of what layers were chosen for: which differences count, and that each is found."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from layercard.cli.plan import TRAINING_ONLY as NOT_PLANNED
from layercard.placement.made_for import (
    TRAINING_ONLY,
    choice_settings,
    data_difference,
    differences,
    make_record,
    model_differences,
    same_precision,
    stack_difference,
    target_difference,
    unread_settings,
)
from layercard.settings import PlacementSettings

MODEL = {
    "id": "org/a",
    "architecture": "A",
    "fingerprint": "f" * 64,
    "files": None,
    "dtype": "float32",
    "quantization": None,
}
DATA = {"read": "rows", "rows": 3, "name": None, "digest": "d" * 32, "split": "train"}
HUB = {"read": "hub", "name": "org/rows", "digest": None, "split": "train"}


def record(model: Any = None, settings: Any = None, **changes: Any) -> dict[str, Any]:
    values = {"layers_path": "model.layers", "target_modules": ["q", "v"], "data": DATA} | changes
    return make_record(model=MODEL | (model or {}), settings=PlacementSettings.from_user(settings or "auto"), **values)


def test_a_record_is_itself_whenever_it_was_made() -> None:
    assert differences(record(), record() | {"date": "2001-01-01", "versions": {}}, set()) == []


@pytest.mark.parametrize(
    ("then", "now", "count"),
    [
        ({"fingerprint": "a" * 64}, {}, 1),
        ({"fingerprint": "a" * 64, "files": "x"}, {"files": "x"}, 1),  # weights before files
        ({"id": "moved/elsewhere"}, {}, 0),  # the same weights under another name
        ({"fingerprint": None}, {"id": "org/b"}, 1),
        ({"fingerprint": None}, {}, 0),
        ({"fingerprint": None, "id": "A"}, {}, 0),  # made from a configuration, it has no name
        ({"fingerprint": None, "files": "x" * 32}, {"files": "y" * 32}, 1),
        ({"fingerprint": None, "files": "x" * 32}, {"files": "x" * 32, "id": "org/b"}, 0),
    ],
)
def test_models_are_told_apart_by_weights_files_and_name(then: Any, now: Any, count: int) -> None:
    assert len(list(model_differences(record(model=then), record(model=now)))) == count
    assert len(list(model_differences(record(model=now), record(model=then)))) == count


@pytest.mark.parametrize(
    ("then", "now", "other"),
    [
        ("model.layers", "layers", False),
        ("encoder.layer", "bert.encoder.layer", False),
        ("encoder.block", "decoder.block", True),
        ("model.layers", "model.xlayers", True),
        ("vision_tower.layers", "language_model.layers", True),
    ],
)
def test_stacks_are_told_apart_by_path_unless_their_weights_are_the_same(then: str, now: str, other: bool) -> None:
    pair = record(layers_path=then, model={"fingerprint": "a" * 64}), record(layers_path=now)
    for first, second in (pair, pair[::-1]):
        assert (stack_difference(first, second) is not None) is other
        assert [d.field for d in differences(first, second, set())] == (
            ["the stack of layers"] if other else ["the model"]
        )
    assert stack_difference(record(layers_path=then), record(layers_path=now)) is None


@pytest.mark.parametrize(
    ("then", "now", "other"),
    [
        (["v", "q"], ["q", "v"], False),
        (["q"], ["q", "v"], True),
        (r".*q", ["q"], True),
        (None, ["q"], False),
        ("all-linear", ["q"], False),
    ],
)
def test_target_modules_are_compared_where_both_are_known(then: Any, now: Any, other: bool) -> None:
    pair = record(target_modules=then), record(target_modules=now)
    assert (target_difference(*pair) is not None) is (target_difference(*pair[::-1]) is not None) is other


@pytest.mark.parametrize(
    ("now", "other"),
    [
        (DATA | {"digest": "e" * 32}, True),
        (DATA | {"digest": None}, False),
        (DATA | {"task": "masked"}, False),  # not known then
        (DATA | {"split": "test"}, True),
        (DATA | {"read": "file", "digest": "e" * 32}, False),
        (None, False),
    ],
)
def test_data_are_compared_where_both_were_read_alike(now: Any, other: bool) -> None:
    assert (data_difference(record(), record(data=now)) is not None) is other
    assert (data_difference(record(data=now), record()) is not None) is other


@pytest.mark.parametrize(
    ("change", "other"),
    [({}, False), ({"name": "org/others"}, True), ({"split": "test"}, True), ({"digest": "d" * 32}, False)],
)
def test_data_on_the_hub_are_told_apart_by_name_and_split(change: Any, other: bool) -> None:
    pair = record(data=HUB), record(data=HUB | change)
    assert (data_difference(*pair) is not None) is (data_difference(*pair[::-1]) is not None) is other


@pytest.mark.parametrize(
    ("quantization", "dtype", "same"), [(None, "float32", True), ("4-bit", "float32", False), (None, "float16", False)]
)
def test_packed_and_float16_weights_have_fingerprints_of_their_own(quantization: Any, dtype: str, same: bool) -> None:
    other = record(model={"quantization": quantization, "dtype": dtype})
    assert same_precision(record(), other) is same_precision(other, record()) is same


def test_every_setting_of_a_choice_is_recorded_and_none_of_training() -> None:
    recorded = choice_settings(PlacementSettings())
    assert recorded.keys() == {field.name for field in fields(PlacementSettings)} - TRAINING_ONLY
    assert NOT_PLANNED <= TRAINING_ONLY


def test_a_setting_of_a_later_release_is_compared_with_nothing() -> None:
    then = record()
    then["settings"]["unheard_of"] = 1
    assert differences(then, record(), set()) == []


@pytest.mark.parametrize(
    ("strategy", "score", "cards", "reads"),
    [
        ("indices", None, (), set()),
        ("last", None, (), set()),
        ("random", None, (), {"random_seed"}),
        ("a_plugins", None, (), {"random_seed"}),
        ("high", "cka", (), {"random_seed", "probe_examples", "probe_batch_size", "probe_rank"}),
        ("auto", None, (), {"prefer", "cards", "community_cards", "min_spearman"}),
    ],
)
def test_a_choice_depends_on_what_it_reads(strategy: str, score: Any, cards: Any, reads: set[str]) -> None:
    known = {
        "random_seed",
        "probe_examples",
        "probe_batch_size",
        "probe_rank",
        "prefer",
        "cards",
        "community_cards",
        "min_spearman",
    }
    assert known - unread_settings(strategy, score, cards) == reads
    assert known - unread_settings("auto", None, ("a/b",)) == known


def test_files_are_recorded_by_their_names() -> None:
    settings = PlacementSettings.from_user("/home/ada/runs/placement.json")
    assert choice_settings(settings)["lora_layers"] == "placement.json"
    assert choice_settings(PlacementSettings.from_user("auto", cards="model/data"))["cards"] == "model/data"
    assert choice_settings(PlacementSettings.from_user("auto", cards="/home/ada/card.json"))["cards"] == "card.json"
